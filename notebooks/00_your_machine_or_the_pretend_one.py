# %% [markdown] tags=["question"]
# # 00 · Your machine, or the pretend one
#
# **What lies between the memory of your GPU and the memory of your neighbour's, and how would you notice that a piece
# of it is dead?**
#
# This course runs on a laptop. `rdmakit` builds a *world* inside this process: hosts, GPUs, NICs and cables. Its NICs
# read the same bytes that an NVIDIA ConnectX reads and answer with the same bytes. The objects that you meet here are
# those that you would use on a cluster.

# %%
import rdmakit
from rdmakit import course, show
from rdmakit.device import connected_pair

course.begin()

# %% [markdown]
# ## The picture
# Two hosts. Each has two GPUs, each GPU has a NIC beside it on the same PCIe switch, and each NIC has two ports.

# %% tags=["picture"]
world = rdmakit.World(hosts=2, gpus_per_host=2, name="pretend")
world

# %% [markdown]
# Read it from top to bottom. A **GPU** hands its bytes to the nearest **NIC**; the NIC sends them through one of its
# **ports**; the **fabric** (cables and switches) carries them to a port of another host.
#
# `open` gives you one NIC. A port has an address, its **GID**, and counts what passes. The counters are your eyes.

# %%
nic = world.open(host=0, nic=0)
nic

# %% [markdown]
# ## Predict
# You are going to write 8 bytes to the other host, 1,000 times: 8,000 bytes of **payload**. A NIC cannot send bare
# bytes: each message travels in a packet that says where it goes. How many bytes will port 1 count as sent?
#
# Type your number in place of `None`.

# %% tags=["predict"]
course.predict("wire", "How many bytes leave port 1 for 1,000 WRITEs of 8 bytes?", None, "B")

# %% [markdown]
# ## Run
# `connected_pair` makes a connection between two NICs, here on port 1 of each; notebook 01 takes it apart. `register`
# lets a NIC touch memory; notebook 02 is about that.

# %%
near, far = connected_pair(nic, world.open(host=1, nic=0), port=1)
source = near.pd.register(world.array(1 << 16, fill=7, name="source"))
target = far.pd.register(world.array(1 << 16, name="target"))

# %% tags=["run"]
for _ in range(1000):
    near.post_write(source[:8], target)
    near.send_cq.wait()

nic

# %% tags=["plot"]
course.plot_prediction("wire", nic.port(1).counters["xmit_bytes"])

# %% [markdown]
# Two things stand in that table. **Port 2 sent nothing**: this connection lives on port 1, and no second cable helps
# it. (Notebook 06 mends that.) And **each 8 bytes cost 86**. The other 78 are headers: Ethernet 14, IPv4 20, UDP 8, the
# transport header 12, the address and key of the remote memory 16, and two checksums of 4.
#
# How long must a message be before they no longer matter?

# %% tags=["plot"]
sizes, wire = [8, 32, 128, 512, 2048, 8192, 32768], []
for size in sizes:
    before = nic.port(1).counters["xmit_bytes"]
    near.post_write(source[:size], target)
    near.send_cq.wait()
    wire.append(nic.port(1).counters["xmit_bytes"] - before)

title = "From 2 KiB on, at least 96 % of the bytes on the wire are payload"
with course.plot(title, "size of one WRITE (B)", "payload on the wire (%)") as axes:
    axes.semilogx(sizes, [100 * size / sent for size, sent in zip(sizes, wire, strict=True)], base=2)
    axes.set_ylim(0, 105)

# %% [markdown]
# ## Break it
# Pull a cable: port 1 of the *other* host's first NIC. Look at the map, then write once more.

# %% tags=["break"]
world.set_port_up(host=1, nic=0, port=1, up=False)
world

# %%
before = nic.port(1).counters
near.post_write(source[:8], target)
completion = near.send_cq.wait(check=False)[0]  # check=False: show the error instead of raising it
completion

# %%
after = nic.port(1).counters
sent, received = (after[name] - before[name] for name in ("xmit_packets", "rcv_packets"))
print(f"our port is up: {nic.port(1).up}; packets sent: {sent}; packets received: {received}")

# %% [markdown]
# One WRITE, eight packets. Every packet wants an answer, an **ACK**. None came, so the NIC sent the packet again, seven
# times, and then gave up: `RETRY_EXC_ERR`. It cannot tell *why* nobody answered. Nor does your own port look ill: its
# cable is fine. The dead one is at the far end.
#
# ## Exercise: find the port that is down
# Here is another pair of hosts. You may log in to host 0 only. Each of its ports talks to its twin on host 1: same NIC,
# same port. One port of host 1 is down, and some ports had nothing to send. Your eyes are two snapshots of host 0's
# counters, before a round of traffic and after.
#
# Write `find_down`. `before` and `after` map `(nic, port)` to the counters of that port, a dict with `"xmit_packets"`
# and `"rcv_packets"` in it. Return the `(nic, port)` whose twin is down. It is tried on pairs of hosts that you have
# not seen.

# %%
from rdmakit.course.checks.nb00 import cabinet

before, after = cabinet(seed=1)
heads = ["(nic, port)", "sent before", "sent after", "received before", "received after"]
names = ("xmit_packets", "rcv_packets")
rows = [[port, *(when[port][name] for name in names for when in (before, after))] for port in after]
show.data_table(rows, heads, title="Packets that host 0 counted: whose twin is down?")


# %% tags=["exercise"] exercise="00.find_down"
# exercise: 00.find_down
def find_down(before, after):
    return None  # the (nic, port) whose twin is down


# %% tags=["check"]
course.check("00.find_down", find_down)

# %% [markdown]
# ## On real hardware
# The same 1,000 WRITEs from a port of this machine's NIC to itself. It receives, too, so it sends the ACKs: 66 bytes each
# (your 78 of headers, with 4 bytes in place of the address and key). Expect 86 + 66 = **152 bytes a WRITE**; of soft-RoCE
# about 116, since its network device counts IP packets, without Ethernet's 18 bytes each.

# %% tags=["hardware"]
if course.hardware_cell("rdma"):
    pair = course.real_pair("rdma")
    port = pair.near.context.port(pair.near.endpoint().port)
    source = pair.near.pd.register(pair.world.array(8, fill=7))
    target = pair.far.pd.register(pair.world.array(8))
    before = port.counters["xmit_bytes"]
    for _ in range(1000):
        pair.near.post_write(source, target)
        pair.near.send_cq.wait()
    each, landed = (port.counters["xmit_bytes"] - before) / 1000, (target.bytes == 7).sum()
    print(f"{pair.name}: {each:.0f} B a WRITE, {landed} of 8 bytes landed ({course.how_measured()})")

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **Time.** This world has no clock (`policy="fast"`), so nothing here is a bandwidth. `policy="timed"` has one.
# * **The preamble and the gap** between Ethernet frames, 20 bytes each: port counters do not see them either.
# * **Half-dead cables.** A port here is up or down. Real ones also drop, corrupt and slow down.
# * **The switch.** The fabric delivers; it has no queues and no congestion yet.
