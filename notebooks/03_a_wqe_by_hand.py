# %% [markdown] tags=["question"]
# # 03 · A WQE by hand
#
# **What must 64 bytes say, so that a NIC moves memory from one machine to another?**
#
# They are called a **WQE**, a work queue entry. Everything that this course does later, on GPUs, over two ports, for
# mixtures of experts, ends in somebody writing these bytes. Here that is you.

# %%
import numpy as np

import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.layout import decode, encode
from rdmakit.show.palette import BAD, BLUE, GOOD, QUIET, SKY

course.begin()

# %% [markdown]
# ## The picture
# Two hosts, a queue pair between them, a buffer on each side. We let the library write one WQE: *copy the 64 bytes of
# `source` to `target`*. Then we look at what it left in the ring.

# %%
world = rdmakit.World(hosts=2)
near, far = connected_pair(world.open(host=0), world.open(host=1))
source = near.pd.register(world.array(64, fill=7, name="source"))
target = far.pd.register(world.array(64, name="target"))

# %% tags=["picture"]
near.post_write(source, target)
first = near.wqe(0)
first

# %% [markdown]
# Three **segments** of 16 bytes, and 16 bytes that nobody reads.
#
# * **ctrl**: what to do (`opcode`), whose queue this is (`qpn`), the WQE's place in the queue (`wqe_index`), its size in
#   units of 16 bytes (`ds`), and whether to report success (`CQ_UPDATE` in `fm_ce_se`).
# * **raddr**: where to at the peer: an address, and the `rkey` that opens it.
# * **data**: from where here: how many bytes, the `lkey`, an address.
#
# All numbers are **big endian**: the most significant byte comes first. Your CPU stores them the other way round.
#
# ## Predict
# We post *the same* WRITE a second time: same buffers, same queue. How many of its 64 bytes differ from the first?

# %% tags=["predict"]
course.predict("again", "How many of the 64 bytes change when the same WRITE is posted again?", None, "B")

# %% tags=["run"]
near.post_write(source, target)
second = near.wqe(1)
second.grid(golden=first.raw, title="The same WRITE again: what differs from the first is framed")

# %% tags=["plot"]
changed = sum(one != other for one, other in zip(first.raw, second.raw, strict=True))
course.plot_prediction("again", changed)

# %% [markdown]
# Only the index. It counts basic blocks of 64 bytes for ever and is cut to 16 bits. So a sender can prepare a WQE early
# and fill in little at the last moment.
#
# A WQE holds a *pointer* to the payload, so its size does not depend on how much is moved. Or it holds the payload
# itself (**inline**), which saves the NIC a trip to memory.

# %% tags=["plot"]
sizes = [4, 8, 16, 28, 64, 128, 256, 512]
common = {"index": 0, "qpn": near.qpn, "raddr": target.address, "rkey": target.rkey}
here = [encode.Sge(source.address, n, source.lkey) for n in sizes]
pointed = [16 * decode(encode.write(**common, sges=sge)).ds for sge in here]
inlined = [16 * decode(encode.write_inline(**common, data=bytes(n))).ds for n in sizes]

with course.plot("A pointer costs 16 bytes, whatever it points at", "payload (B)", "WQE (B)") as axes:
    axes.plot(sizes, pointed, label="pointer to the payload")
    axes.plot(sizes, inlined, label="payload inside the WQE")
    axes.legend()

# %% [markdown]
# Now by hand. The smallest WQE is a **NOP**: a ctrl segment and nothing else. `post_wqe` puts bytes into the ring as
# they are and rings the bell. Nobody checks them, except the NIC.

# %%
index, opcode, ds, cq_update = near.posted, 0x00, 1, 0x08
nop = (
    (index << 8 | opcode).to_bytes(4, "big")
    + (near.qpn << 8 | ds).to_bytes(4, "big")
    + bytes([0, 0, 0, cq_update])
    + bytes(4)
)
near.post_wqe(nop)
near.send_cq.wait(3)  # two WRITEs and your NOP

# %% [markdown]
# ## Break it
# A WRITE uses 48 bytes. We take each in turn, flip its lowest bit, and post the WQE in a fresh world. In how many of the
# 48 cases will the NIC still report **success**?

# %% tags=["predict"]
course.predict("flips", "Of 48 WRITEs with one flipped bit, how many complete with success?", None, "WRITEs")


# %% tags=["break"]
FATES = RIGHT, WRONG, HERE, THERE, NEVER = (
    "success",
    "success, but wrong bytes moved",
    "refused by its own NIC",
    "refused by the peer",
    "never completes",
)


def attempt(byte):
    world = rdmakit.World(hosts=2)
    near, far = connected_pair(world.open(host=0), world.open(host=1))
    source, target = near.pd.register(world.array(256)), far.pd.register(world.array(256))
    source.bytes[:] = np.arange(256)
    good = encode.write(index=0, qpn=near.qpn, raddr=target.address + 64, rkey=target.rkey, sges=source[64:128].sge())
    wqe = bytearray(good)
    wqe[byte] ^= 1
    near.post_wqe(wqe)
    done = near.send_cq.poll()
    moved = np.flatnonzero(target.bytes)
    if not done:
        return NEVER
    if done[0].ok:
        right = np.array_equal(moved, np.arange(64, 128)) and np.array_equal(target.bytes[moved], moved)
        return RIGHT if right else WRONG
    return THERE if done[0].status.name.startswith("REM") else HERE


fates = [attempt(byte) for byte in range(48)]

# %%
fields = {entry.offset + i: entry.name for entry in first.fields for i in range(entry.size)}
cells = [(byte, 1, f"{fate}.{fields[byte]}", None) for byte, fate in enumerate(fates)]
lies = fates.count(WRONG)
title = f"One flipped bit in each byte: {lies} of 48 move the wrong bytes and report success"
colours = dict(zip(FATES, (GOOD, BAD, SKY, BLUE, QUIET), strict=True))
show.byte_grid(cells, 48, title=title, colours=colours)

# %% tags=["plot"]
course.plot_prediction("flips", sum(fate.startswith("success") for fate in fates))

# %% [markdown]
# The keys do their work: hardly any wrong address gets past an `lkey` or an `rkey`. But inside a region nobody knows
# what you *meant*. A length that is off by one, or an address that is, is a correct WQE for the wrong thing. And with a
# wrong `qpn` the NIC looks at another queue: nothing happens, for ever.
#
# ## Exercise: match the golden bytes
# Write `write_wqe`. It returns the 64 bytes of an RDMA WRITE (opcode `0x08`) with one pointer to its payload, exactly as
# the picture shows them. `index` may be larger than 16 bits. If `signalled` is false, `fm_ce_se` is 0.


# %% tags=["exercise"] exercise="03.golden_bytes"
# exercise: 03.golden_bytes
def write_wqe(index, qpn, raddr, rkey, laddr, lkey, length, signalled):
    ctrl = bytes(16)  # your 16 bytes
    remote = bytes(16)  # your 16 bytes
    data = bytes(16)  # your 16 bytes
    return ctrl + remote + data + bytes(16)


# %%
mine = write_wqe(7, near.qpn, target.address, target.rkey, source.address, source.lkey, 64, True)
decode(mine)

# %% tags=["check"]
course.check("03.golden_bytes", write_wqe)

# %% [markdown]
# ## On real hardware
# The library of a ConnectX, libmlx5, writes a WRITE into a ring; we lay your bytes beside its own. If all 48 agree
# (expect that), yours go into another ring, and the NIC moves 64 bytes. When a WQE of yours fails on a ConnectX, the kernel's
# driver prints it: `sudo dmesg | grep -A 4 'WQE DUMP'` has lines like those of `layout.hexdump`, to the letter.

# %% tags=["hardware"]
if course.hardware_cell("mlx5"):
    pair = course.real_pair()
    source = pair.near.pd.register(pair.world.array(64, fill=7))
    target = pair.far.pd.register(pair.world.array(64))
    where = target.address, target.rkey, source.address, source.lkey, 64, True
    qpn, theirs = course.wqe_of_library(pair, source, target)
    same = sum(one == other for one, other in zip(write_wqe(0, qpn, *where)[:48], theirs, strict=False))
    target.bytes[:] = 0
    if same == 48:
        pair.near.post_wqe(write_wqe(0, pair.near.qpn, *where))
        pair.near.send_cq.wait()
    moved = (target.bytes == 7).sum()
    print(f"{pair.name}: {same} of 48 bytes as libmlx5 writes them; yours moved {moved} of 64 bytes (measured)")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **The signature byte.** A ConnectX can check an XOR over the WQE. It is off by default, here as there.
# * **Every firmware's opinion.** Which reserved bits a NIC ignores and which it refuses differs between generations.
#   This one ignores what the public headers call reserved.
# * **What the ring held before.** Slots here start as zeros. On the second lap they hold old WQEs, and a torn write is
#   an old WQE in part: notebook 04.
