# %% [markdown] tags=["question"]
# # 06 · Two ports, one used
#
# **A NIC has two ports of 200 Gb/s. Why do many kernels get 200 out of it, and how do you get 400?**
#
# The ports of such a NIC are usually *bonded*: programs see one device, and for each queue pair the NIC chooses the port.
# Nobody tells you which. All bytes of a queue pair leave by one port, so two ports need at least two queue pairs, and luck
# or a plan. What a bond goes by is one of two things:
#
# * **hash**: the UDP source port of the RoCE packets, which belongs to the queue pair,
# * **affinity**: a number of the queue pair itself, dealt out in turn by the kernel driver, which you may change.

# %%
from types import SimpleNamespace

import numpy as np

from rdmakit import course, show
from rdmakit.device import connected_pair
from rdmakit.errors import NotAvailable
from rdmakit.model import load
from rdmakit.model.cluster import world_of
from rdmakit.model.hashes import FIRST_SOURCE_PORT, LAST_SOURCE_PORT, NVSHMEM_SOURCE_PORT, lag_port

course.begin()

PRESET = load("roce").changed(hosts=2, gpus_per_host=1)
MiB = 1 << 20
print(PRESET)


def bond(lag, queues=16):
    """Two hosts, joined by queue pairs between two bonded NICs."""
    world = world_of(PRESET.changed(lag=lag))
    here, there = world.open(host=0), world.open(host=1)
    pairs = [connected_pair(here, there)]
    pairs += [connected_pair(here, there, beside=pairs[0]) for _ in range(queues - 1)]
    source, target = (end.pd.register(world.array(4 * MiB)) for end in pairs[0])
    qps = [near for near, _ in pairs]
    return SimpleNamespace(world=world, nic=here, far=there, qps=qps, pairs=pairs, source=source, target=target)


def port_bytes(nic):
    """Payload that has left by port 1 and by port 2."""
    return np.array([nic.port(port).counters["xmit_payload"] for port in (1, 2)])


def traffic(bond, sizes):
    """A WRITE of `sizes[i]` bytes on queue pair i, all at once: bytes by port, and GB/s together (modelled)."""
    before, began = port_bytes(bond.nic), bond.world.now_ns
    for qp, size in zip(bond.qps, sizes, strict=True):
        qp.post_write(bond.source[:size], bond.target[:size])
    for qp in bond.qps:
        qp.send_cq.wait()
    return port_bytes(bond.nic) - before, sum(sizes) / (bond.world.now_ns - began)


# %% [markdown]
# ## Predict
# NVSHMEM's IBGDA gives every queue pair the same UDP source port, 49152. Our bond hashes. Sixteen queue pairs write 1 MiB
# each. Two ports of 200 Gb/s are 50 GB/s together. How many will it be?

# %% tags=["predict"]
course.predict("fixed", "16 QPs with one UDP source port: how many GB/s together?", None, "GB/s")

# %% [markdown]
# ## The picture
# Which way each queue pair takes. The port is not asked for, it is seen: each sends 4 KiB alone, and a counter moves.

# %% tags=["picture"]
hashed = bond("hash")
for qp in hashed.qps:
    qp.udp_sport = NVSHMEM_SOURCE_PORT


def port_of(bond, qp):
    """The port that the queue pair's bytes leave by, found by sending some."""
    before = port_bytes(bond.nic)
    qp.post_write(bond.source[:4096], bond.target[:4096])
    qp.send_cq.wait()
    return 1 + int((port_bytes(bond.nic) - before).argmax())


def ways(bond, what):
    return [(f"QP {qp.qpn:#x}", what(qp), f"port {port_of(bond, qp)}", MiB) for qp in bond.qps]


routes = ways(hashed, lambda qp: f"source port {qp.udp_sport}")
used = len({route[2] for route in routes})
title = f"One UDP source port: the hash has nothing to go by, and {used} of 2 ports is used"
show.route_map(["queue pair", "UDP header", "leaves by"], routes, title=title, colour_by=2)

# %% tags=["run"]
EQUAL = [MiB] * 16
fixed, fixed_gbs = traffic(hashed, EQUAL)
bars = [(f"mlx5_0 port {port}", int(count), f"port {port}") for port, count in zip((1, 2), fixed, strict=True)]
show.port_bars(bars, title=f"One UDP source port for all: {fixed_gbs:.1f} GB/s (modelled), and port 2 is idle")

# %% tags=["plot"]
course.plot_prediction("fixed", round(fixed_gbs, 1))

# %% [markdown]
# ## Leave it to chance
# Without that setting the driver makes a source port of the two QP numbers, and every queue pair takes a port by chance.
# With many queue pairs it evens out. How many is many? Here is the same hash on random source ports, 400 draws for
# each number.

# %% tags=["plot"]
rng = np.random.default_rng(6)
COUNTS = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
ratios = []
for count in COUNTS:
    sports = rng.integers(FIRST_SOURCE_PORT, LAST_SOURCE_PORT + 1, (400, count))
    second = (lag_port(sports, 0x0A010001, ports=2) == 2).sum(axis=1)
    busiest = np.maximum(second, count - second)
    ratios.append(float(np.median(busiest / np.maximum(count - busiest, 0.5))))
enough = next(n for n, ratio in zip(COUNTS, ratios, strict=True) if ratio <= 1.05)
title = f"By chance: {enough} queue pairs until ports differ by less than 5 % (modelled)"
with course.plot(title, "queue pairs of one NIC (count)", "busiest / idlest port (ratio, median)") as axes:
    axes.semilogx(COUNTS, ratios, base=2)
    axes.axhline(1.05, linestyle="--", color="grey")
    axes.set_ylim(0.9, None)

# %% [markdown]
# ## The other bond
# With *affinity* the kernel driver deals: port 2, port 1, port 2 … to queue pairs in the order in which they are made. Even
# without a plan this is even. So is all well?
#
# ## Break it
# Real programs make more than data queue pairs. Ours makes two for every peer: one for data, one for credits, in turn.
# 1 MiB each goes over those for data, next to nothing over the others. What percentage leaves by the busier port?

# %% tags=["predict"]
course.predict("in turn", "Data and credits in turn: what leaves by the busier port?", None, "%")

# %% tags=["break"]
even = bond("affinity")
all_alike, even_gbs = traffic(even, EQUAL)
with_credits, credit_gbs = traffic(even, [MiB if i % 2 == 0 else 64 for i in range(16)])
bars = [
    (f"{what}, port {port}", count / sum(loads), f"port {port}")
    for what, loads in (("all carry data", all_alike), ("every other one", with_credits))
    for port, count in zip((1, 2), loads, strict=True)
]
bars = [(name, 100 * share, kind) for name, share, kind in bars]
title = f"Same bond, same queue pairs: {even_gbs:.0f} GB/s if all carry data, {credit_gbs:.0f} if every other one does (modelled)"
show.port_bars(bars, "% of the bytes", title=title)

# %% tags=["plot"]
course.plot_prediction("in turn", round(100 * with_credits.max() / with_credits.sum(), 1))

# %% [markdown]
# Dealing in turn is a plan as well: somebody else's, for other traffic than yours. You may set the port yourself:
# `qp.lag_port = 1` (`mlx5dv_modify_qp_lag_port`), or, in a bond that hashes, `qp.udp_sport = …`
# (`mlx5dv_modify_qp_udp_sport`). Each bond knows one of them only:

# %%
try:
    hashed.qps[0].lag_port = 1
except NotAvailable as error:
    print(error)
for qp, port in zip(even.qps, np.tile([1, 1, 2, 2], 4), strict=True):
    qp.lag_port = port
planned, planned_gbs = traffic(even, [MiB if i % 2 == 0 else 64 for i in range(16)])
print(f"affinity set by us: {planned.tolist()} bytes by port, {planned_gbs:.1f} GB/s (modelled)")

even.world.set_port_up(host=0, nic=0, port=2, up=False)
configured, active = even.qps[2].lag_port
_, down_gbs = traffic(even, EQUAL)
even.world.set_port_up(host=0, nic=0, port=2, up=True)
print(
    f"port 2 without its cable: a QP of port {configured} takes port {active}; {down_gbs:.1f} GB/s instead of {even_gbs:.1f}"
)

# %% [markdown]
# ## Exercise: both ports, at most 5 % apart
# Queue pair *i* is going to send `sizes[i]` bytes, and sizes differ a lot. Steer, so that the busier port carries at most
# 1.05 times what the other carries. Once in each bond:
#
# * `by_affinity(qps, sizes)`: set `qp.lag_port` of each,
# * `by_source_port(qps, sizes, port_of)`: set `qp.udp_sport` of each, 49152 to 65535. What the hash makes of it is not
#   documented. `port_of(qp)` sends a little and says which port it took.
#
# Ports are judged by their counters, on bonds with 12 to 40 queue pairs and sizes that you have not seen.


# %% tags=["exercise"] exercise="06.steer"
# exercise: 06.steer
def by_affinity(qps, sizes):
    for i, qp in enumerate(qps):
        qp.lag_port = 1 + i % 2


def by_source_port(qps, sizes, port_of):
    for i, qp in enumerate(qps):
        qp.udp_sport = 49152 + i


# %% tags=["check"]
course.check("06.steer", by_affinity, by_source_port)

# %% [markdown]
# ## On real hardware
# No hash is documented; the counters are the judge there too. 16 queue pairs from this machine's ports to themselves, first
# as NVSHMEM does it, then by a plan, steered by what the device has: a port or a device named at birth, LAG affinity, UDP source
# ports. Expect by plan **at most 1.05** between the ports, and without one an idle port; but a bond that deals ports in turn
# is even in both. `rdmakit ports` shows what ports carry while another program sends.

# %% tags=["hardware"]
if course.hardware_cell("rdma+dual-port"):
    bars = []
    for policy in ("fixed", "planned"):
        real = course.real_ports(16, policy=policy)
        done = real.send([1 << 16] * 16)
        assert not done.wrong, done
        bars += [(f"{policy}, {name}", count, name) for name, count in zip(real.names, done.moved, strict=True)]
        print(f"{policy}, by {real.plan.mechanism}: {real.complaint() or 'the device names no other port than planned'}")
    ratio = max(done.moved) / min(done.moved)
    title = f"By plan, busiest / idlest port: {ratio:.3f} ({course.how_measured()})"
    course.display(show.port_bars(bars, done.unit, title=title))

# %% [markdown] tags=["not-modelled"]
# ## What we did not model
# * **Your NIC's hash.** Ours is one of our own. That one source port gives one port is all that it shares with yours.
# * **The way back.** ACKs are small, and take the port that the peer's queue pair has.
# * **The switches behind the ports.** They hash as well, over the same source port: `rdmakit plan` fills both, port and path.
# * **Cables that are slow, not dead.** A bond moves queue pairs away from a port without link, and from no other.
