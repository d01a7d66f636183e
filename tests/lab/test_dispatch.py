"""Dispatch and combine between the lab's two hosts, over both soft-RoCE ports of each: kernels on the CPU runner.

A rank is a process; queue pairs are posted by the proxy. What is compared with what: rdmakit.ep.host_trial.
"""

import argparse

import pytest

two_hosts = pytest.importorskip("two_hosts", reason="the lab's tests share it")

from rdmakit.cli import bench, bench_hosts, bench_mesh  # noqa: E402

pytestmark = pytest.mark.timeout(400)
PLACE = {"hosts": ("--tokens", "96", "--hidden", "256", "--rounds", "1"), "mesh": ("--qps", "16")}


def on_each(tmp_path, what, run, *more, each=1):
    """`bench WHAT` on both hosts, each with its own two devices, and `each` ranks there; results by rank."""

    def rank(host, number):
        parser = argparse.ArgumentParser()
        bench.add_parser(parser.add_subparsers())
        devices = ",".join(host.name(port) for port in two_hosts.PORTS)
        given = ("--meet", f"file:{tmp_path}/meeting", "--rank", str(number), "--ranks", str(2 * each))
        asked = (*given, "--devices", devices, "--timeout", "150", *PLACE[what], *more)
        result = run(parser.parse_args(["bench", what, *asked]))
        return {name: result[name] for name in ("ok", "figures", "lines")}

    def part(host):
        first = host.number * each
        others = [two_hosts.Beside(lambda number=first + local: rank(host, number)) for local in range(1, each)]
        return [rank(host, first), *(other.result() for other in others)]

    return [result for found in two_hosts.on_both(part, part, seconds=350) for result in found]


def test_every_bit_is_right_and_both_ports_carry_half(tmp_path, figure):
    for result in on_each(tmp_path, "hosts", bench_hosts.hosts):
        text = "\n".join(result["lines"])
        assert result["ok"], text
        assert "a proxy on the CPU posts" in text and "by a device for each port and flow label" in text
        figure("dispatch_port_bytes_max_over_min", result["figures"]["port_bytes_max_over_min"])


@pytest.mark.timeout(400)
def test_two_ranks_of_each_host(tmp_path):
    """Four processes: what stays on a host goes through shared memory, the rest over both ports."""
    small = ("--tokens", "16", "--hidden", "128", "--channels", "2", "--most", "3")  # too few for even ports
    found = on_each(tmp_path, "hosts", bench_hosts.hosts, "--ranks-per-host", "2", *small, each=2)
    assert len(found) == 4
    for result in found:
        text = "\n".join(result["lines"])
        assert result["ok"] and result["figures"]["qps"] == 4 and result["figures"]["wrong"] == 0, text
        assert "by a device for each port and flow label" in text


def test_all_on_one_port_is_found_out(tmp_path):
    """The trap of a pool that lies by ports: bytes are right, ports are not."""
    for result in on_each(tmp_path, "hosts", bench_hosts.hosts, "--policy", "first-half", "--tokens", "16"):
        text = "\n".join(result["lines"])
        assert not result["ok"] and result["figures"]["wrong"] == 0
        assert "port 2 carries nothing" in text and "ports are not used alike" in text


def test_queue_pairs_a_second(tmp_path, figure):
    for result in on_each(tmp_path, "mesh", bench_mesh.mesh):
        assert result["ok"] and result["figures"]["qps"] == 16, result["lines"]
        figure("qps_per_second", result["figures"]["qps_per_second"])
