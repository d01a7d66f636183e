"""Why ports are not as much faster than one: each cause in what was measured and read, and its absence without it."""

from dataclasses import replace

import pytest

from rdmakit.cli.bench_ports_causes import causes
from rdmakit.cli.bench_ports_facts import PortFacts
from rdmakit.cli.bench_ports_run import Run, Seen, max_over_min, ratio


def facts(number, host=0, **changed):
    """A ConnectX-7 with a device for each 200 Gb/s port, each in a slot of its own."""
    base = PortFacts(
        name=f"mlx5_{number}/1", device=f"mlx5_{number}", number=1, lag_port=0, link=f"eth{number}", layer="Ethernet",
        up=True, gid=f"::ffff:10.0.{number}.{host}", gbs=25.0, pcie=f"0000:{number + 1}1:00", pcie_gbs=63.0,
        pcie_said="x16 at 32 GT/s", bond="", mode="", policy="", select="", software=False,
    )  # fmt: skip
    return replace(base, **changed)


def bonded(number, **changed):
    """Port `number` (from 0) of one bond that hashes as it should."""
    bond = {"name": f"mlx5_bond_0/1 (LAG port {number + 1})", "device": "mlx5_bond_0", "lag_port": number + 1,
            "bond": "bond0", "mode": "802.3ad", "policy": "layer3+4", "select": "hash",
            "pcie": "0000:11:00"}  # fmt: skip
    return facts(number, **{**bond, **changed})


def seen(number, **changed):
    base = Seen(number + 1, facts(number), facts(number, 1), 24.0, 4, (0xC001 + number, 0xC011 + number), 48 << 30, 1.0)
    return replace(base, **changed)


def run(*ports, both=25.0, **changed):
    return Run(ports or (seen(0), seen(1)), both, **changed)


def names(found):
    return [cause.name for cause in found]


def ends(port, **changed):
    """The same at both ends."""
    return replace(port, near=replace(port.near, **changed), far=replace(port.far, **changed))


def with_bond(**changed):
    return [replace(seen(i), near=bonded(i, **changed), far=bonded(i, **changed)) for i in range(2)]


TWO = (seen(0), seen(1))
IDLE = {"sent": 1 << 20}
# What was found → the cause that has to be named, words of its sentence, words of a remedy.
FOUND = {
    "one port down": (
        run(seen(0), replace(seen(1, alone_gbs=0.0, qps=0, sent=None), far=facts(1, 1, up=False)), both=24.0),
        "port down", "port 2 (mlx5_1/1 of the receiver)", "ip link set eth1 up"),
    "an InfiniBand port without a subnet manager": (
        run(seen(0), replace(seen(1, alone_gbs=0.0, qps=0), near=facts(1, up=False, layer="InfiniBand")), both=24.0),
        "port down", "of the sender", "opensm"),
    "a port that breaks": (
        run(seen(0), seen(1, alone_gbs=0.0, failed="RETRY_EXC_ERR"), both=24.0),
        "port does not carry", "RETRY_EXC_ERR", "VLAN"),
    "the same device twice": (
        run(seen(0), replace(seen(1), near=facts(0))),
        "same port twice", "mlx5_0/1 of the sender", "each once"),
    "the same device twice at the receiver": (
        run(seen(0), replace(seen(1), far=facts(0, 1))), "same port twice", "of the receiver", "rdmakit info"),
    "a link of lower speed": (
        run(seen(0), ends(seen(1, alone_gbs=12.0), gbs=12.5), both=36.0),
        "slower link", "link of 100 Gb/s, port 1 of 200", "ethtool -s eth1 speed 200000"),
    "a port that is slower than it says": (
        run(seen(0), seen(1, alone_gbs=9.0, sent=20 << 30), both=33.0),
        "slower port", "port 2 (mlx5_1/1 → mlx5_1/1) alone carries 9 GB/s", "tc qdisc show dev eth1"),
    "a hash that puts all on one port": (
        run(*[replace(port, **({} if i else IDLE)) for i, port in enumerate(with_bond(policy="layer2"))]),
        "hash", "port 1 1048576 B: bond0 hashes layer2", "xmit_hash_policy layer3+4"),
    "a hash at which source ports collide": (
        run(*[replace(port, **({} if i else IDLE)) for i, port in enumerate(with_bond())]),
        "hash", "bond0 hashes layer3+4", "echo queue_affinity > /sys/class/net/eth1/compat/devlink"),
    "a hash that is not the planner's: one alone was both": (
        run(*[replace(port, own_share=0.5) for port in with_bond()]),
        "hash", "50 % left by it", "queue_affinity"),
    "a bond that uses one port": (
        run(*[replace(port, **({} if i else IDLE)) for i, port in enumerate(with_bond(mode="active-backup"))]),
        "bond uses one port", "mode active-backup", "mode 802.3ad"),
    "affinity that moves to the other port": (
        run(*[replace(port, **({} if i else IDLE)) for i, port in enumerate(with_bond(select="queue_affinity"))]),
        "affinity not kept", "though each queue pair was given a port", "/proc/net/bonding/bond0"),
    "two ports in one subnet": (
        run(seen(0), seen(1, **IDLE)), "one port carries both", "port 2 1048576 B", "arp_ignore=1"),
    "a plan that leaves a port out": (
        run(seen(0, qps=8), seen(1, qps=0, alone_gbs=0.0, sent=0), both=24.0),
        "no queue pair", "port 2 has no queue pair: 8 in all", "--policy planned"),
    "one queue pair": (
        run(*[replace(port, qps=1 - i, source_ports=(0xC001,) * (1 - i)) for i, port in enumerate(with_bond())]),
        "one queue pair", "1 queue pair for 2 ports", "--qps 4"),
    "one source port": (
        run(*[seen(i, source_ports=(0xC000,)) for i in range(2)]),
        "one source port", "all 8 queue pairs have UDP source port 0xc000", "flow_label"),
    "a slot that is narrower than both ports": (
        run(*[replace(port, near=replace(port.near, pcie="0000:11:00", pcie_gbs=31.5, pcie_said="x16 at 16 GT/s"))
              for port in TWO], both=28.0),
        "pcie", "the sender's mlx5_0/1, mlx5_1/1 share PCIe 0000:11:00, x16 at 16 GT/s = 31.5",
        "lspci -vv -s 0000:11:00.0"),
    "the receiver's slot": (
        run(*[replace(port, far=replace(port.far, pcie="0000:11:00", pcie_gbs=15.8)) for port in TWO], both=14.0),
        "pcie", "the receiver's", "LnkSta"),
    "congestion": (
        run(seen(0, near_grown={"cnp_handled": 900}), seen(1, far_grown={"cnp_sent": 1000, "ecn_marked": 1200})),
        "congestion", "1000 CNPs sent, 900 handled", "source ports that spread"),
    "pauses by the receiver": (
        run(seen(0), seen(1, far_grown={"tx_pfc": 77}, near_grown={"rx_pfc": 60})),
        "receiver pauses", "77 pause frames", "numactl"),
    "pauses by the network": (
        run(seen(0), seen(1, near_grown={"rx_pfc": 60})), "network pauses", "60 pause frames", "switches' pause"),
    "packets lost": (
        run(seen(0, far_grown={"out_of_sequence": 90_000}),
            seen(1, near_grown={"timeouts": 8, "packet_seq_err": 70_000})),
        "losses", "sender packet_seq_err 70000, timeouts 8; receiver out_of_sequence 90000", "prio-pfc 3:on"),
    "software ports whose poster comes too late": (
        run(*[ends(port, software=True, pcie="") for port in TWO], busy=(0.8, 0.5), empty=0.8),
        "processors", "busy (80 %)", "--cpus 4"),
    "software ports on busy processors": (
        run(*[ends(port, software=True, pcie="") for port in TWO], busy=(0.97, 0.5)),
        "processors", "busy (97 %)", "tc qdisc replace dev eth0"),
    "a poster that is too slow": (
        run(empty=0.8), "posting", "80 % of refills", "--batch"),
    "nothing that is counted": (run(), "unknown", "nothing that these hosts count", "shared uplink"),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_a_cause_is_named_with_what_would_mend_it(what):
    given, name, said, mend = FOUND[what]
    found = {cause.name: cause for cause in causes(given)}
    assert name in found, found
    assert said in found[name].said
    assert mend in "\n".join(found[name].mend)
    assert all(cause.said and cause.mend for cause in found.values()), "no cause without a remedy"
    assert name == "unknown" or "unknown" not in found


CERTAIN = {"port down", "port does not carry", "same port twice", "no queue pair"}


@pytest.mark.parametrize("what", [what for what, (_, name, *_) in FOUND.items() if name not in CERTAIN])
def test_the_same_facts_explain_nothing_where_two_ports_are_twice_one(what):
    """What was read is no fault when nothing is missing."""
    given, *_ = FOUND[what]
    one = max(port.alone_gbs for port in given.ports)
    assert causes(replace(given, both_gbs=1.96 * one)) == []


@pytest.mark.parametrize("what", [what for what, (_, name, *_) in FOUND.items() if name in CERTAIN])
def test_a_port_that_cannot_have_carried_its_share_is_named_whatever_was_measured(what):
    given, name, *_ = FOUND[what]
    assert names(causes(replace(given, both_gbs=1e3))) == [name]


# Facts that must not be taken for the cause beside them.
INNOCENT = {
    "posting": run(empty=0.2),
    "processors": run(*[ends(port, software=True) for port in TWO], busy=(0.5, 0.6)),
    "processors of real NICs": run(busy=(1.0, 1.0)),
    "losses": run(seen(0, far_grown={"out_of_sequence": 3}), seen(1)),
    "pcie": run(*[ends(port, pcie="0000:11:00", pcie_gbs=63.0) for port in TWO]),
    "hash": run(*with_bond()),
    "one port carries both": run(seen(0), seen(1, sent=44 << 30)),
    "one source port": run(*[ends(seen(i, source_ports=(0,)), layer="InfiniBand") for i in range(2)]),
    "slower port": run(*[ends(seen(i, alone_gbs=(2.0, 1.5)[i]), software=True) for i in range(2)], both=1.6,
                       busy=(1.0, 1.0)),
    "congestion": run(seen(0, near_grown={"cnp_handled": 0})),
    "receiver pauses": run(seen(0, near_grown={"tx_pfc": 5})),
}  # fmt: skip


@pytest.mark.parametrize("what", INNOCENT)
def test_what_is_no_cause_is_not_named(what):
    assert what.split(" of ")[0] not in names(causes(INNOCENT[what]))


def test_the_surest_come_first_and_a_port_that_is_down_is_always_named():
    down = replace(seen(1, alone_gbs=0.0, qps=0, sent=None), near=facts(1, up=False))
    found = names(causes(run(seen(0, near_grown={"cnp_handled": 9}), down, both=24.0, empty=0.9)))
    assert found == ["port down", "congestion", "posting"]


def test_counters_of_a_bond_are_counted_once():
    """Both ports of a bond show the device's own."""
    ports = [replace(port, near_grown={"cnp_handled": 100}, far_grown={"cnp_sent": 100}) for port in with_bond()]
    assert "100 CNPs sent, 100 handled" in causes(run(*ports))[0].said


def test_ratios_are_of_the_fastest_port_and_an_idle_one_counts_as_one_byte():
    assert ratio(run(seen(0, alone_gbs=20.0), seen(1, alone_gbs=10.0), both=30.0)) == 1.5
    assert ratio(run(seen(0, alone_gbs=0.0), seen(1, alone_gbs=0.0), both=0.0)) == 0.0
    assert max_over_min([5, 0]) == 5 and max_over_min([]) == 1.0


def test_four_ports_are_four_times_one():
    ports = tuple(seen(i) for i in range(4))
    assert causes(run(*ports, both=4 * 24 * 0.96)) == []
    assert names(causes(run(*ports, both=2 * 24.0))) == ["unknown"]
