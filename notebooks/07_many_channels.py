# %% [markdown] tags=["question"]
# # 07 · Many channels
#
# **64 warps want to send to the same peer. How many queue pairs should they share, and which warp takes which?**
#
# A queue pair is a ring with one order. Warps that share it take turns: one reserves a slot, writes its WQE, waits until
# those before it are published, and one at a time rings. So kernels have **channels**: a warp and a queue pair of its own.
# Queue pairs cost memory and, with many peers, space in the NIC's caches. How many are worth it?
#
# All rates here are **modelled**; ports are judged by their counters, which count bytes.

# %%
import numpy as np

from rdmakit import course, show
from rdmakit.device import connected_pair, handle_array
from rdmakit.model import load
from rdmakit.model.cluster import world_of
from rdmakit.model.plan import make_plan
from rdmakit.model.workload import sized_for

course.begin()

PRESET = load("h800-cx7-roce-unbonded").changed(hosts=2, gpus_per_host=1)
print(PRESET)

# %% [markdown]
# ## The kernel
# Each warp posts WRITEs, with a doorbell each, to the queue pair that `queue_of` names. Here: warp modulo pool.

# %%
MODULO = r"""
RDMAKIT_DEVICE u32 queue_of(u32 warp, u32 pool, u32 ports) { return warp % pool; }
"""
KERNEL = r"""
RDMAKIT_KERNEL many(const QpHandle* qps, u32 pool, u32 ports, RemoteMemory to, LocalMemory from, u64 bytes, u32 messages) {
    const QpHandle& qp = qps[queue_of(static_cast<u32>(block_id()), pool, ports)];
    for (u32 i = 0; i < messages; ++i) put(qp, to, from, bytes);
    quiet(qp);
}
"""
HEAD = "#include <rdmakit/signal.cuh>\nusing namespace rdmakit;\n"


def send(warps, pool, size, messages, queue_of=MODULO, ports=1):
    """`messages` WRITEs by each warp over `pool` queue pairs, those of port 1 first: ns, and bytes by port."""
    world = world_of(PRESET)
    here, there = world.open(host=0), world.open(host=1)
    pairs = []
    for port in np.repeat(range(1, ports + 1), pool // ports).tolist():
        pairs.append(connected_pair(here, there, port=port, beside=pairs[0] if pairs else None))
    near, far = pairs[0]
    source, target = near.pd.register(world.array(size)), far.pd.register(world.array(size))
    handles = handle_array([near.device_handle() for near, _ in pairs])
    kernel = world.compile(HEAD + queue_of + KERNEL, name="many.cu").get_function("many")
    kernel(warps, 32, [handles, pool, ports, target.remote(), source, size, messages])
    world.run()
    return world.launches[-1].end_ns, [here.port(port).counters["xmit_payload"] for port in (1, 2)]


# %% [markdown]
# ## Predict
# 64 warps, WRITEs of 64 bytes. All on **one** queue pair, or each on **its own**: how many times as many WRITEs a second?

# %% tags=["predict"]
course.predict("own", "64 queue pairs instead of one: how many times as many WRITEs?", None, "times")


# %% [markdown]
# ## The picture
# Every number of warps with every number of queue pairs, in steady state: the time of 32 WRITEs a warp less that of 16.

# %% tags=["picture", "run"]
COUNTS = [1, 2, 4, 8, 16, 32, 64]


def writes_a_second(warps, pool):
    """In millions."""
    short, long = (send(warps, pool, 64, messages)[0] for messages in (16, 32))
    return 16 * warps / (long - short) * 1e3


rates = np.array([[writes_a_second(warps, pool) for pool in COUNTS] for warps in COUNTS])
title = f"One queue pair: {rates[:, 0].max():.2f} million WRITEs a second, however many warps push (modelled)"
show.heat_map(rates.round(2), COUNTS, COUNTS, unit="M/s", down="warps", across="queue pairs", title=title)

# %% tags=["plot"]
course.plot_prediction("own", round(rates[-1, -1] / rates[-1, 0], 1))

# %% [markdown]
# Read it in three directions. **Down a column**: more warps on the same queue pairs soon gain nothing; they wait for their
# turn. **Along a row**: beyond one queue pair a warp nothing changes; nobody shares any more. **On the diagonal** it
# doubles with every step: that is what channels are for.
#
# What does sharing cost a warp? The same numbers as time for one WRITE:

# %% tags=["plot"]
sharers = [(64 // pool, 64 / rates[-1, at]) for at, pool in enumerate(COUNTS)][::-1]
title = f"Alone a warp takes {sharers[0][1]:.1f} µs for a WRITE; one of 64 on a queue pair, {sharers[-1][1]:.0f} µs (modelled)"
lines = {"64 warps": sharers}
show.line_chart(
    lines, "warps that share a queue pair (count)", "time of one WRITE for one warp (µs)", title=title, log=True
)

# %% [markdown]
# Alone, it is fences and atomics. Shared, each waits for the fences of all others.
#
# ## Break it: half the pool
# Now two ports, 200 Gb/s each, not bonded: a queue pair's port is chosen when it is made. So one makes a pool, say 32 queue
# pairs, **[16 of port 1 | 16 of port 2]**, and a kernel with 16 channels takes the queue pair of its number. Both ports have
# as many queue pairs. 16 warps write 32 KiB again and again. How many of 50 GB/s?

# %% tags=["predict"]
course.predict("half", "16 channels on a pool of 16 + 16: how many GB/s?", None, "GB/s")

# %% tags=["break"]
LARGE = 1 << 15
bars, reached = [], {}
for warps in (16, 32):
    ns, carried = send(warps, 32, LARGE, 64, ports=2)
    reached[warps] = sum(carried) / ns
    bars += [
        (f"{warps} channels, port {port}", count, f"port {port}") for port, count in zip((1, 2), carried, strict=True)
    ]
title = f"16 channels use the first half of the pool: {reached[16]:.0f} GB/s; 32 use both: {reached[32]:.0f} (modelled)"
show.port_bars(bars, title=title)

# %% tags=["plot"]
course.plot_prediction("half", round(reached[16], 1))

# %% [markdown]
# Nothing failed. No error, right data, half the rate. This is a real bug (DeepEP issue 650): whoever made the pool thought
# of ports, whoever wrote the kernel of channels, and with *enough* channels a test would have passed.
#
# A **plan** sees it before anything runs. It is data: queue pair → port, with the bytes that each will carry.

# %%
two_hosts = load("h800-cx7-roce-unbonded").changed(hosts=2, gpus_per_host=2)
bytes_of = sized_for(two_hosts, "normal", "dispatch", tokens=128, channels=16).traffic()  # of a MoE dispatch
plans = {
    policy: make_plan(two_hosts, "normal", channels=16, policy=policy).carrying(bytes_of)
    for policy in ("first-half", "planned")
}
for policy, plan in plans.items():
    print(f"{policy}: {(plan.audit() or ['no complaint'])[0]}")
bars = [
    (f"{policy}, host 0 mlx5_{nic} port {port + 1}", int(plan.port_bytes[0, nic, port]), f"port {port + 1}")
    for policy, plan in plans.items()
    for nic in (0, 1)
    for port in (0, 1)
]
ratio = plans["planned"].port_max_over_min
show.port_bars(bars, title=f"Bytes of a dispatch (modelled): a port idle, or planned: busiest / idlest {ratio:.3f}")

# %% [markdown]
# ## Exercise: which queue pair?
# The pool lies as before: first all queue pairs of port 1, then all of port 2, and so on; `pool` of them, as many for each
# of `ports` ports. Write `queue_of`, so that for **any** number of warps, numbered from 0
#
# * ports have equally many warps, give or take one,
# * no two warps share a queue pair while another is unused, and beyond that all are shared alike, give or take one.
#
# It is called by 1 to 100 warps, on pools for one, two and four ports; then bytes are counted at both ports.

# %% tags=["exercise"] exercise="07.queue_of"
# exercise: 07.queue_of
mine = r"""
RDMAKIT_DEVICE u32 queue_of(u32 warp, u32 pool, u32 ports) {
    return warp % pool;
}
"""

# %% tags=["check"]
course.check("07.queue_of", mine)

# %%
ns, carried = send(16, 32, LARGE, 64, queue_of=mine, ports=2)
print(f"16 channels with your queue_of: {sum(carried) / ns:.1f} GB/s (modelled), bytes by port {carried}")

# %% [markdown]
# ## On real hardware
# Your `queue_of` says which of 32 queue pairs each of 16 warps takes, 16 on each of two ports of this machine. 32 KiB a warp
# leave by them, and the ports count. Expect an idle port with "modulo", and with yours both alike. Contention needs a GPU
# and no NIC: `rdmakit bench queue` **measures** there how many WQEs a second warps post, over warps and queue pairs.

# %% tags=["hardware"]
if course.hardware_cell("rdma+dual-port"):
    ASK = "RDMAKIT_KERNEL ask(u32* out) { out[block_id()] = queue_of(static_cast<u32>(block_id()), 32, 2); }\n"
    real, bars = course.real_ports(32, on=np.repeat([1, 2], 16)), []
    for name, code in (("modulo", MODULO), ("yours", mine)):
        world = world_of(PRESET)
        taken = world.array(16, np.uint32)
        world.compile(HEAD + code + ASK, name="ask.cu").get_function("ask")(16, 32, [taken])
        world.run()
        done = real.send(LARGE * np.bincount(taken, minlength=32))
        assert not done.wrong, done
        bars += [(f"{name}, {port}", count, port) for port, count in zip(real.names, done.moved, strict=True)]
    title = f"Yours: {done.moved[0]:,} and {done.moved[1]:,} {done.unit} ({course.how_measured()})"
    course.display(show.port_bars(bars, done.unit, title=title))

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **The NIC's caches.** A queue pair's context must be in the NIC when it is rung. Thousands of them do not fit, and rates
#   fall; ours knows no such limit, so nothing here speaks against a million queue pairs. Something does.
# * **Contention in the GPU's L2.** An atomic costs 132 ns (measured alone) however many warps hammer on one word.
# * **One reservation for many WQEs.** A warp that posts 32 at once pays for one turn and one bell: notebook 05 rings less.
