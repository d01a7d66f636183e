"""`rdmakit bench ports` on real devices: bytes right, ports counted, and what is missing named.

Bonds: rdmakit connectx --lag hash -- python -m pytest tests/rdma/test_bench_ports.py (and --lag affinity, --nics 4).
"""

import argparse
import os
from types import SimpleNamespace

import pytest
from connect_rig import every_rank, results
from hosts_rig import shared_out

from rdmakit.cli import bench, bench_ports
from rdmakit.cli.bench_ports_traffic import raw
from rdmakit.device import connected_pair
from rdmakit.device import open as open_device
from rdmakit.errors import NotAvailable, PeerMismatch
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_memory import HostQueueMemory, QueuePlacement

pytestmark = pytest.mark.skipif(
    os.environ.get("RDMAKIT_LAB") == "1", reason="tests/lab/test_lab_bench_ports.py is that between two hosts"
)
QUICK = ("--seconds", "0.2", "--warm-up", "0.05", "--rounds", "1", "--qps", "2", "--size", "4096", "--timeout", "40")


def parsed(*given):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", "ports", *given])


def rank_of(tmp_path, devices, *more):
    def rank(number):
        given = ("--meet", f"file:{tmp_path}/meeting", "--rank", str(number), "--ranks", "2", "--devices",
                 ",".join(devices[number]))  # fmt: skip
        return bench_ports.ports(parsed(*given, *QUICK, *more))

    return rank


def lag_of(name):
    with open_device(name) as context:
        return context.device.lag


def test_queues_that_the_cpu_does_not_reach_take_no_batches(devices, spelled):
    spelled(devices[0], "devx")

    class Elsewhere(HostQueueMemory):
        """Reached after all, but nothing says so: as of a GPU's."""

        name = "memory of a GPU's"

        def allocate(self, nbytes, label):
            region = super().allocate(nbytes, label)
            return SimpleNamespace(bytes=region.bytes, dmabuf=None, write=region.write)

    with open_devx(devices[0], QueuePlacement(Elsewhere())) as here, open_device(devices[1]) as there:
        joined = SimpleNamespace(path=SimpleNamespace(context=here), qp=connected_pair(here, there)[0])
        with pytest.raises(NotAvailable, match="the CPU may not reach it") as caught:
            raw(joined)
        assert "host memory" in caught.value.remedy


def test_each_port_alone_and_all_together(names, tmp_path):
    devices = shared_out(names, 2)
    near, far = results(2, rank_of(tmp_path, devices))
    figures, count = near["figures"], len(near["config"]["sender"])
    assert near["ok"] and far["ok"] and figures["wrong"] == 0
    assert near["figures"] == far["figures"] and near["causes"] == far["causes"], "both ranks know the same"
    assert all(figures[f"port_{port + 1}_gbs"] > 0 for port in range(count)) and figures["both_ports_gbs"] > 0
    assert figures["both_over_one"] == pytest.approx(
        figures["both_ports_gbs"] / max(figures[f"port_{port + 1}_gbs"] for port in range(count))
    )
    text = "\n".join(near["lines"])
    assert "every byte of what arrived last is right" in text and "measured" in text
    check_conservation(near)  # how even ports are in a time is the scheduler's where they share processors
    assert figures["both_over_one"] >= 0.95 * count or near["causes"], "less than that has a likely cause"
    assert all(cause["said"] and cause["mend"] for cause in near["causes"])


def check_conservation(result):
    """What each port counted is what its queue pairs carried, with headers; and it arrived there."""
    figures, counters = result["figures"], result["counters"].values()
    if "wire_over_payload" not in figures:
        return  # no bytes of a port's own: a bond whose driver shows none
    exact = "SYSFS_PATH" in os.environ and not figures["losses"]  # emulated: nobody else sends, nothing is sent twice
    ratios = [each["sender"]["xmit_bytes"] / each["payload"] for each in counters if each["payload"]]
    assert 1.0 < figures["wire_over_payload"] < 1.2 and ratios
    hashed = any("hash" in str(line) for line in result["lines"][:1])  # then which port it is, is the bond's to say
    if not hashed:
        most = 1 if exact else 1.05
        assert all(abs(ratio / figures["wire_over_payload"] - 1) <= most - 1 + 1e-9 for ratio in ratios), counters
    for sent, received in (("sender", "receiver"), ("receiver", "sender")):
        gone, come = (sum(each[end][name] for each in counters)
                      for end, name in ((sent, "xmit_bytes"), (received, "rcv_bytes")))  # fmt: skip
        assert gone == come if exact else abs(gone - come) <= 0.05 * max(gone, come) + (1 << 16), counters


def test_ports_that_carry_as_many_bytes_count_as_many(names, tmp_path):
    """By bytes in place of time: what each port has is the plan's affair, however busy the machine is."""
    batches, size, batch = 64, 4096, 16
    devices, carried = shared_out(names, 2), batches * batch * size
    near, far = results(2, rank_of(tmp_path, devices, "--qp-bytes", str(carried)))
    assert near["ok"] and near["figures"] == far["figures"] and near["config"]["qp_bytes"] == carried
    assert [each["payload"] for each in near["counters"].values()] == [2 * carried] * len(near["config"]["sender"])
    assert all(near["figures"][f"port_{port + 1}_gbs"] > 0 for port in range(len(near["counters"])))
    check_conservation(near)
    assert near["figures"].get("port_bytes_max_over_min", 1.0) <= 1.05


def test_one_source_port_for_all_is_named(names, tmp_path):
    devices = shared_out(names, 2)
    near, _ = results(2, rank_of(tmp_path, devices, "--policy", "fixed"))
    named = [cause["name"] for cause in near["causes"]]
    if len(near["config"]["sender"]) == 1:
        pytest.skip("one port: rdmakit connectx --nics 4, or --lag hash")
    assert near["ok"]
    enough = near["figures"]["both_over_one"] >= 1.9  # on a busy machine one rate may be twice another by chance
    if lag_of(devices[0][0]) == "bond" and "hash" in str(near["lines"][0]):
        assert near["figures"]["port_bytes_max_over_min"] > 100
        assert enough or ("hash" in named and "one source port" in named)
    assert enough or named


def test_a_plan_that_idles_a_port_is_named(names, tmp_path):
    devices = shared_out(names, 2)
    near, _ = results(2, rank_of(tmp_path, devices, "--policy", "first-half", "--least", "16"))
    if len(near["config"]["sender"]) == 1:
        pytest.skip("one port: rdmakit connectx --nics 4, or --lag affinity")
    assert not near["ok"] and near["figures"]["wrong"] == 0 and "WRONG less than --least 16" in near["lines"]
    if near["figures"]["both_over_one"] < 1.9 or lag_of(devices[0][0]) == "none":
        assert {"hash", "no queue pair"} & {cause["name"] for cause in near["causes"]}


def test_a_device_given_twice_is_named(names, tmp_path):
    devices = [[each[0], each[0]] for each in shared_out(names, 2)]
    if lag_of(devices[0][0]) == "bond":
        pytest.skip("a bond given twice has four ports: rdmakit connectx --nics 4")
    near, _ = results(2, rank_of(tmp_path, devices))
    assert near["ok"] and near["causes"][0]["name"] == "same port twice"


def test_ranks_that_do_not_fit_are_named(names, tmp_path):
    devices = shared_out(names, 2)
    found = every_rank(2, rank_of(tmp_path, [devices[0] * 2, devices[1]]))
    assert all(isinstance(each, PeerMismatch) and "different numbers of ports" in str(each) for each in found)

    def uneven(number):
        return rank_of(tmp_path / "other", devices, "--batch", str(4 + number))(number)

    assert all(isinstance(each, PeerMismatch) and "different loads" in str(each) for each in every_rank(2, uneven))
