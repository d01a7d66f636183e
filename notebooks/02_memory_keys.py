# %% [markdown] tags=["question"]
# # 02 · Memory keys
#
# **RDMA lets another machine write into your memory and never asks your CPU. Who may touch which bytes?**
#
# You say so beforehand. To **register** memory is to tell the NIC: these bytes, these rights. You get back a **memory
# region** (MR) with two keys. The **lkey** is for your own work requests. The **rkey** you may give to a peer. From
# then on the NIC is the doorman, and nobody passes without a key.

# %%
from types import SimpleNamespace

import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.layout import Sge

course.begin()

# %% [markdown]
# ## The picture
# The far host cuts 16 KiB of its memory into three regions, each with rights of its own.

# %% tags=["picture"]
world = rdmakit.World(hosts=2)
here, there = world.open(host=0), world.open(host=1)
near, far = connected_pair(here, there)

memory = world.array(1 << 14, name="memory of the far host")
inbox = far.pd.register(memory[:8192], "local_write|remote_write", name="inbox")
board = far.pd.register(memory[8192:12288], "remote_read", name="notice board")
diary = far.pd.register(memory[12288:], "", name="diary")
far.pd

# %% [markdown]
# Each access is put to four questions. Is there such a key? Is its region of the same **protection domain** (PD) as the
# queue pair? Does it grant this right? Do *all* the bytes lie inside?
#
# ## Predict
# The inbox has 8,192 bytes. Somebody writes 8,193 bytes to its beginning. They travel in three packets: 4,096 bytes,
# 4,096 bytes, and 1 byte. How many bytes land in the inbox?

# %% tags=["predict"]
course.predict("landed", "How many bytes of the 8,193 land?", None, "B")

# %% [markdown]
# ## Run
# A write that is one byte too long. As `remote` we pass an address and a key, which is all that a real peer has.


# %% tags=["run"]
def landed(nbytes):
    near, far = connected_pair(here, there)  # new ones each time: an error ends a connection
    source = near.pd.register(world.array(1 << 14, fill=7))
    memory = world.array(1 << 14)
    inbox = far.pd.register(memory[:8192], "local_write|remote_write")
    near.post_write(source[:nbytes], (inbox.address, inbox.rkey))
    near.send_cq.wait(check=False)
    return int((memory == 7).sum())


landed(8193)

# %% tags=["plot"]
course.plot_prediction("landed", landed(8193))

# %% [markdown]
# Not one, although two packets would have fitted. The first packet of a WRITE names the length of the *whole* message,
# so the far NIC asks its four questions before it touches the first byte.

# %% tags=["plot"]
sizes = [1024, 2048, 4096, 6144, 8192, 8193, 10240, 12288]
with course.plot("One byte too many, and nothing lands", "bytes written (B)", "bytes landed (B)") as axes:
    axes.plot(sizes, [landed(size) for size in sizes], label="landed")
    axes.axvline(8192, linestyle="--", color="#999999", label="size of the inbox")
    axes.legend()

# %% [markdown]
# The last byte would have fallen on the notice board, which lies right behind the inbox. On the map:

# %%
regions = [(mr.name, mr.address, mr.nbytes, mr.lkey, mr.rkey) for mr in (inbox, board, diary)]
writes = [
    ("WRITE of 8,192 B", inbox.address, 8192, True),
    ("WRITE of 8,193 B", inbox.address, 8193, False, "1 byte past the end of the inbox"),
]
show.address_map(regions, writes)

# %% [markdown]
# ## Break it
# Now make every mistake once, each on a connection of its own. `mine` is 4,096 bytes here, with all rights. `theirs` is
# 4,096 bytes there, for remote writes only. `strange` is there too, but in another protection domain.


# %%
def attempt(mistake):
    qp, peer = connected_pair(here, there)
    mine = qp.pd.register(world.array(4096))
    theirs = peer.pd.register(world.array(8192)[:4096], "local_write|remote_write")
    strange = there.alloc_pd().register(world.array(4096))
    mistake(SimpleNamespace(qp=qp, mine=mine, theirs=theirs, strange=strange))
    completion = qp.send_cq.wait(check=False)[0]
    return completion.opcode, completion.status.name, qp.state.name, peer.state.name


def close_it_first(o):
    kept = o.theirs.remote()  # address and rkey, as a peer would have noted them down
    o.theirs.close()
    o.qp.post_write(o.mine, kept)


mistakes = {
    "none": lambda o: o.qp.post_write(o.mine, o.theirs),
    "an rkey that nobody has": lambda o: o.qp.post_write(o.mine, (o.theirs.address, 0xBAD00)),
    "a region of another PD": lambda o: o.qp.post_write(o.mine, o.strange),
    "a right that was not granted": lambda o: o.qp.post_read(o.mine, o.theirs),
    "one byte past the end": lambda o: o.qp.post_write(o.mine, (o.theirs.address + 1, o.theirs.rkey)),
    "a region that has been closed": close_it_first,
    "an lkey that nobody has": lambda o: o.qp.post_write(Sge(o.mine.address, 4096, 0xBAD00), o.theirs),
}

# %% tags=["break"]
rows = [[name, *attempt(mistake)] for name, mistake in mistakes.items()]
heads = ["mistake", "operation", "status at the sender", "our QP", "their QP"]
show.data_table(rows, heads, title="Six mistakes, but only two answers", marked=range(1, len(rows)))

# %% [markdown]
# * **`LOC_PROT_ERR`**: your *own* NIC refused to touch your memory. The peer's QP is well: it never heard of it.
# * **`REM_ACCESS_ERR`**: the *peer's* NIC refused, and broke off the connection. It does not say which of the four
#   questions you failed: who tries keys at random shall learn nothing.
#
# Either way your QP is in ERR. To pick yourself up, take *both* ends through RESET and connect them again. Until then
# whatever you post comes back as `WR_FLUSH_ERR`.
#
# A trap of Python: the MR *object* is the registration. When Python forgets the object, the keys die. Keep it.

# %% [markdown]
# ## Exercise: cause a protection error, and name it
# You are given a connected `qp` and two regions. All keys are real, and you stay inside all bounds:
# * `mine`, here, 4,096 bytes, registered with `""`: nobody may write it, not even your own NIC.
# * `theirs`, there, 4,096 bytes, registered with `"remote_read"`.
#
# Write two functions. Each posts **one** work request on `qp`, with these two regions and no others, and returns the
# name of the status that it will complete with. `local_error` shall be refused by your own NIC, `remote_error` by the
# peer's.


# %% tags=["exercise"] exercise="02.protection"
# exercise: 02.protection
def local_error(qp, mine, theirs):
    # qp.post_… here
    return "the name of its status"


def remote_error(qp, mine, theirs):
    # qp.post_… here
    return "the name of its status"


# %% tags=["check"]
course.check("02.protection", local_error, remote_error)

# %% [markdown]
# ## On real hardware
# The same mistakes with a NIC of this machine, which is both ends. The answers are its own: expect those of the table above,
# and a title that says how many differ.

# %% tags=["hardware"]
if course.hardware_cell("rdma"):
    pair = course.real_pair("rdma")
    world, here, there = pair.world, pair.near.context, pair.near.context
    real = [[name, *attempt(mistake)] for name, mistake in mistakes.items()]
    differ = [i for i, (row, ours) in enumerate(zip(real, rows, strict=True)) if row != ours]
    title = f"{pair.name}: {len(differ)} of {len(rows)} answers differ from the emulated NIC's (measured)"
    course.display(show.data_table(real, heads, title=title, marked=differ))

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **What registering costs.** A real NIC pins the pages and loads their addresses: microseconds and more for each MR.
#   Programs register once, large, and early.
# * **GPU memory.** On real machines the NIC reaches it through dma-buf or nvidia-peermem. Here all memory is RAM.
# * **Secrecy.** An rkey is 32 bits and travels in the clear. It keeps out mistakes, not attackers on your wire.
# * **On-demand paging, memory windows, and relaxed ordering**, which is a right as well and returns in notebook 08.
