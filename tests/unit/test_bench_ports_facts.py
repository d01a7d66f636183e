"""What `rdmakit bench ports` reads of ports, from trees of machines: links, slots, bonds, counters."""

from types import SimpleNamespace

import pytest
from machine_tree import Host

from rdmakit.cli.bench_ports_facts import facts_of, grown, read_counters
from rdmakit.cli.doctor.machine import Machine

COUNTERS = "class/infiniband/mlx5_{}/ports/1"


def path(device, lag_port=0, up=True):
    """An opened way out, as far as it is asked."""
    context = SimpleNamespace(
        device=SimpleNamespace(name=device),
        ib_port=lambda number: SimpleNamespace(gid="::ffff:10.0.0.1", link_layer="Ethernet"),
        port=lambda number: SimpleNamespace(up=up),
    )
    return SimpleNamespace(context=context, ib_port=1, lag_port=lag_port)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def read(host, *paths):
    return facts_of(Machine(host.root), paths)


def test_links_and_slots_of_two_devices(host):
    host.sys("class/infiniband/mlx5_1/ports/1/state", "1: DOWN")
    host.sys(f"{host.nics[1]}/current_link_width", "8")
    first, second = read(host, path("mlx5_0"), path("mlx5_1"))
    assert (first.name, first.up, first.gbs, first.link) == ("mlx5_0/1", True, 50.0, "eth0")
    assert (second.name, second.up, second.link) == ("mlx5_1/1", False, "eth1")
    assert first.pcie == "0000:14:00" and round(first.pcie_gbs) == 63 and first.pcie_said == "x16 at 32 GT/s"
    assert round(second.pcie_gbs, 1) == 31.5 and first.place != second.place
    assert not first.software and not first.hashes and first.gid == "::ffff:10.0.0.1"


@pytest.mark.parametrize(("select", "hashes"), [("hash", True), ("queue_affinity", False), ("", True)])
def test_ports_of_a_bond(host, select, hashes):
    host.bond(select=select, down=["eth1"])
    host.sys("class/net/eth0/speed", "200000")
    first, second = read(host, path("mlx5_0", 1), path("mlx5_0", 2))
    assert (first.link, second.link) == ("eth0", "eth1") and (first.up, second.up) == (True, False)
    assert first.bond == "bond0" and first.mode == "802.3ad" and first.policy == "layer3+4"
    assert first.hashes is hashes and first.gbs == 25.0 and first.place != second.place


def test_a_device_that_files_do_not_show_is_described_as_far_as_it_was_opened(host):
    (only,) = read(host, path("rxe7", up=False))
    assert (only.name, only.up, only.gbs, only.pcie, only.link) == ("rxe7/1", False, 0.0, "", "")
    assert only.software and read_counters(only, host.root / "sys") == {}


def test_counters_have_the_names_of_rdmakit_ports_and_the_kernels(host):
    at = COUNTERS.format(0)
    for name, value in (("counters/port_xmit_data", 1000), ("hw_counters/rp_cnp_handled", 7),
                        ("hw_counters/local_ack_timeout_err", 3), ("hw_counters/rx_icrc_encapsulated", 2)):  # fmt: skip
        host.sys(f"{at}/{name}", str(value))
    (facts,) = read(host, path("mlx5_0"))
    assert read_counters(facts, host.root / "sys") == {
        "xmit_bytes": 4000, "cnp_handled": 7, "timeouts": 3, "rx_icrc_encapsulated": 2, "packet_seq_err": 0,
    }  # fmt: skip


def test_bytes_of_a_bond_are_not_taken_for_a_ports(host):
    """The device counts both ports as one, and statistics of a real network device leave out RDMA."""
    host.bond(select="hash")
    host.sys(f"{COUNTERS.format(0)}/counters/port_xmit_data", "1000")
    host.sys("class/net/eth1/statistics/tx_bytes", "5000")
    facts = read(host, path("mlx5_0", 2))[0]
    assert facts.link == "eth1" and "xmit_bytes" not in read_counters(facts, host.root / "sys")


def test_soft_roce_counts_by_its_network_device(host):
    at = "class/infiniband/rxe0/ports/1"
    for name, text in (("state", "4: ACTIVE"), ("rate", "10 Gb/sec (4X SDR)"), ("link_layer", "Ethernet"),
                       ("gid_attrs/ndevs/0", "eth0"), ("gids/0", "0000:0000:0000:0000:0000:ffff:0a00:0001"),
                       ("gid_attrs/types/0", "RoCE v2")):  # fmt: skip
        host.sys(f"{at}/{name}", text)
    for name, value in (("tx_bytes", 900), ("rx_bytes", 800), ("tx_dropped", 5), ("rx_dropped", 0)):
        host.sys(f"class/net/eth0/statistics/{name}", str(value))
    (facts,) = read(host, path("rxe0"))
    assert facts.software and facts.link == "eth0" and facts.gbs == 1.25
    found = read_counters(facts, host.root / "sys")
    assert found == {"xmit_bytes": 900, "rcv_bytes": 800, "tx_dropped": 5, "rx_dropped": 0}


def test_growth_of_a_counter_that_was_reset_counts_from_nothing():
    assert grown({"a": 10, "b": 10, "gone": 1}, {"a": 12, "b": 4, "new": 9}) == {"a": 2, "b": 4}
