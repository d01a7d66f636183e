"""`rdmakit bench ports` between the lab's two hosts: two links twice one, and a slower or missing link named."""

import argparse

import pytest

two_hosts = pytest.importorskip("two_hosts", reason="the lab's tests share it")

from rdmakit.cli import bench, bench_ports  # noqa: E402

pytestmark = pytest.mark.timeout(300)
FEW_LARGE = ("--qps", "2", "--size", "131072", "--batch", "2", "--depth", "3")
SMALL = ("--qps", "2", "--size", "16384", "--batch", "4", "--depth", "2")


def on_each(tmp_path, *more):
    """What `bench ports` finds on both hosts, each with its own two devices."""

    def part(host):
        parser = argparse.ArgumentParser()
        bench.add_parser(parser.add_subparsers())
        devices = ",".join(host.name(port) for port in two_hosts.PORTS)
        given = ("--meet", f"file:{tmp_path}/meeting", "--rank", str(host.number), "--ranks", "2", "--devices", devices)
        result = bench_ports.ports(parser.parse_args(["bench", "ports", *given, "--timeout", "90", *more]))
        return {name: result[name] for name in ("ok", "figures", "causes", "lines")}

    near, far = two_hosts.on_both(part, part, seconds=150)
    assert near["figures"] == far["figures"]
    print("\n".join(near["lines"]))
    return near


def shaped(link, ports=two_hosts.PORTS):
    """To `link` Mbit/s, with a burst of 160 ms, which is sent before the window opens."""
    two_hosts.shape("tbf", "rate", f"{link}mbit", "burst", f"{link * 20_000}b", "limit", "16mb", ports=ports)


def test_two_links_are_twice_one(tmp_path, figure):
    """100 Mbit/s each; slower where the emulated processors cannot carry one or both, as test_lab_ports does."""
    for link, load in ((100, FEW_LARGE), (25, SMALL), (10, SMALL)):
        shaped(link)
        found = on_each(tmp_path / str(link), *load, "--seconds", "2", "--warm-up", "0.6", "--rounds", "2")
        figures = found["figures"]
        alone = [8e3 * figures[f"port_{port}_gbs"] for port in (1, 2)]
        if figures["both_over_one"] >= 1.9 and min(alone) > 0.9 * link:
            break
        assert found["causes"] or figures["both_over_one"] >= 1.9, "less than that has a likely cause"
    figure("bench_ports_link_mbit_per_s", link)
    figure("both_over_one", figures["both_over_one"])
    assert found["ok"] and figures["both_over_one"] >= 1.9 and not found["causes"]
    assert figures["port_bytes_max_over_min"] <= 1.05 and 1.0 < figures["wire_over_payload"] < 1.1
    assert 0.9 * link < min(alone) and max(alone) < 1.05 * link, "payload of a shaped link"


def test_a_slower_link_is_named(tmp_path):
    shaped(25, [0])
    shaped(10, [1])
    found = on_each(tmp_path, *SMALL, "--seconds", "1", "--warm-up", "0.6", "--rounds", "1")
    named = {cause["name"]: cause for cause in found["causes"]}
    assert found["ok"] and found["figures"]["both_over_one"] < 1.9
    assert "port 2 (h0r1/1 → h1r1/1) alone carries" in named["slower port"]["said"]
    assert "tc qdisc show dev p1" in named["slower port"]["mend"][0]


def test_a_link_that_is_down_is_left_out_and_named(tmp_path):
    two_hosts.pull(1, 1)
    found = on_each(tmp_path, *SMALL, "--seconds", "0.5", "--warm-up", "0.1", "--rounds", "1")
    assert found["ok"] and found["figures"]["port_2_gbs"] == 0 and found["figures"]["both_over_one"] == 1
    assert found["causes"][0]["name"] == "port down" and "h1r1/1 of the receiver" in found["causes"][0]["said"]
    assert "ip link set p1 up" in found["causes"][0]["mend"][0]
