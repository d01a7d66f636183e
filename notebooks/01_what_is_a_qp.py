# %% [markdown] tags=["question"]
# # 01 · What is a QP?
#
# **Why can a queue pair not send when it is born?**
#
# A **queue pair** (QP) is your end of a connection. It is made of things that you can look at: a number, a *state*, and
# two rings in memory, one for what you send and one for what you receive. You write **work requests** into a ring; the
# NIC reads them and does the work. When it has, it writes into a third ring, the **completion queue** (CQ).

# %%
import rdmakit
from rdmakit import course, show
from rdmakit.errors import BadArgument, BadState, QueueFull

course.begin()

# %% [markdown]
# ## The picture
# A new QP does not know whom it talks to, so it must not send. It learns that step by step, and its state says how far
# it has come:
# * **INIT** — it knows its own port and what its peer may do to it.
# * **RTR**, *ready to receive* — it knows who the peer is.
# * **RTS**, *ready to send* — it knows how long to wait for an answer and how often to try again.
# * **ERR** — something failed, and every work request that is left is thrown back at you ("flushed").
#
# After the picture, meet one: a QP with a CQ of 16 entries and a send ring of 8 slots. A slot has 64 bytes; the field
# calls it a **WQEBB**. The QP shows its state, and under it its ring.

# %% tags=["picture"]
show.qp_states()

# %%
world = rdmakit.World(hosts=2)
here, there = world.open(host=0), world.open(host=1)
cq = here.create_cq(16)
qp = here.alloc_pd().create_qp(cq, sq_wqebbs=8)
qp

# %% [markdown]
# ## Predict
# A QP like this one can be in six states: RESET, INIT, RTR, RTS, SQD, ERR. From each you may ask for each, also for the
# one that it is in: 36 requests. How many of them does the device grant?

# %% tags=["predict"]
course.predict("roads", "How many of the 36 changes of state are granted?", None, "changes")

# %% [markdown]
# ## Run
# On the way up, each step wants to be told certain things, by the names that `man ibv_modify_qp` gives them. Once we
# have these, we ask for all 36. `BadState` means that there is no such road. `BadArgument` means that there is one, and
# that we told it something that does not belong there.

# %%
peer = there.alloc_pd().create_qp(there.create_cq(16), sq_wqebbs=8)
tell = {
    "INIT": {"port_num": 1, "pkey_index": 0, "qp_access_flags": "remote_write"},
    "RTR": {"dgid": peer.endpoint().gid, "dest_qp_num": peer.qpn, "rq_psn": 0, "path_mtu": 4096,
            "min_rnr_timer": 12, "max_dest_rd_atomic": 1},
    "RTS": {"sq_psn": 0, "timeout": 14, "retry_cnt": 7, "rnr_retry": 7, "max_rd_atomic": 1},
}  # fmt: skip
rows = [[state, ", ".join(facts)] for state, facts in tell.items()]
show.data_table(rows, ["to reach", "tell it"], title="Each step wants its own facts")

# %% tags=["run"]
way_to = {"RESET": [], "INIT": ["INIT"], "RTR": ["INIT", "RTR"], "RTS": ["INIT", "RTR", "RTS"],
          "SQD": ["INIT", "RTR", "RTS", "SQD"], "ERR": ["INIT", "ERR"]}  # fmt: skip


def granted(source, target):
    qp.modify("RESET")
    for state in [*way_to[source], target]:
        try:
            qp.modify(state, **tell.get(state, {}))
        except BadState:
            return False
        except BadArgument:
            return True
    return True


roads = [[source, *("✓" if granted(source, target) else "·" for target in way_to)] for source in way_to]
show.data_table(roads, ["from ↓ to →", *way_to], title="Up one step at a time, down at once (✓ granted, · refused)")

# %% tags=["plot"]
course.plot_prediction("roads", sum(row.count("✓") for row in roads))

# %% [markdown]
# ## The rings at work
# `connect` takes the three steps in one call. The peer does the same towards us.

# %%
qp.modify("RESET")
qp.connect(peer)
peer.connect(qp)
source = qp.pd.register(world.array(64, fill=7, name="source"))
target = peer.pd.register(world.array(64, name="target"))
qp

# %% [markdown]
# Three WRITEs. Inside `batch` they are written into the ring, but nobody has told the NIC: that takes a **doorbell**,
# which `batch` rings at its end. This is the ring just before the bell: *written*. After it, the slots are *posted*.

# %%
with qp.batch():
    for i in range(3):
        qp.post_write(source[8 * i : 8 * i + 8], target[8 * i : 8 * i + 8])
    before_the_bell = qp.send_ring()

before_the_bell

# %% [markdown]
# The bell has rung. The NIC may read the slots now, but in this world nothing moves until somebody lets it: `world.run()`. Then the CQ
# holds three entries (CQEs). `poll` takes them, and only that tells us that the slots of the send ring are free again.

# %%
world.run()
cq

# %%
cq.poll()

# %% [markdown]
# ## Break it
# Post without polling. The NIC would happily do the work, but *you* do not know that it has: a ring of 8 takes 8.

# %% tags=["break"]
try:
    for _ in range(100):
        qp.post_write(source[:8], target[:8])
except QueueFull as error:
    print(error)

qp.send_ring()

# %% [markdown]
# ## Exercise: order the transitions
# Two new QPs, `here` and `there`, both in RESET. `here` shall write to `there`. These seven steps do it, but somebody
# shuffled them. Put them in an order in which no step is refused and the data arrives.
#
# One more wish: the WRITE shall go out **as early as it can**.


# %% tags=["exercise"] exercise="01.order"
# exercise: 01.order
order = [
    "there to RTS",
    "here: WRITE",
    "here to INIT",
    "there to RTR",
    "here to RTS",
    "there to INIT",
    "here to RTR",
]


# %% tags=["check"]
course.check("01.order", order)

# %% tags=["hardware"]
# On real hardware: the same 36 requests, put to the kernel and to a NIC of this machine, each of a QP of its own. Expect the
# same answers.
if course.hardware_cell("rdma"):
    pair = course.real_pair("rdma")
    end = pair.far.endpoint()
    tell["RTR"] |= {"dgid": end.gid, "dest_qp_num": end.qpn} | ({"dlid": end.lid} if end.lid else {})

    def asked(source, target):
        global qp
        qp = pair.near.pd.create_qp(pair.near.context.create_cq(16))
        return "✓" if granted(source, target) else "·"

    real = [[source, *(asked(source, target) for target in way_to)] for source in way_to]
    other = [row[0] for row, ours in zip(real, roads, strict=True) if row != ours]
    count = sum(row.count("✓") for row in real)
    title = f"{pair.name}: {count} granted; rows unlike those above: {', '.join(other) or 'none'}"
    course.display(show.data_table(real, ["from ↓ to →", *way_to], title=title))

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **Other kinds of QP.** This one is *reliable connected* (RC), which is what GPU-initiated RDMA uses. Unreliable ones
#   (UC, UD) need less to be told, and only they can reach SQE.
# * **How the two sides meet.** Each must learn the other's number and address first. Here they stand in one process;
#   between hosts they travel as JSON (`qp.endpoint().to_json()`) over any channel that you have.
# * **Luck.** A WRITE here runs to its end before the next step. A real NIC tries again for a while, so a peer that is
#   a little late gets away with it, most of the time.
# * **What a step costs.** On real NICs each change of state is a command to firmware and takes tens of microseconds or
#   more: thousands of QPs take seconds to connect.
