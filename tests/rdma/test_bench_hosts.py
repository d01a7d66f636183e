"""`rdmakit bench hosts` and `bench mesh` on real devices; a plan that idles a port does not pass."""

import argparse

import pytest
from connect_rig import results
from hosts_rig import shared_out

from rdmakit.cli import bench, bench_hosts, bench_mesh
from rdmakit.errors import BadArgument


def parsed(*given):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *given])


def ranks_of(tmp_path, devices, *more, each=1):
    ranks = each * len(devices)

    def rank(number):
        given = ("--meet", f"file:{tmp_path}/meeting", "--rank", str(number), "--ranks", str(ranks), "--devices",
                 ",".join(devices[number // each]), "--ranks-per-host", str(each), "--timeout", "40",
                 "--hidden", "256", "--tokens", "64")  # fmt: skip
        return bench_hosts.hosts(parsed("hosts", *given, *more))

    return results(ranks, rank)


def test_two_hosts_pass_with_figures_of_queue_pairs_ports_and_calls(names, tmp_path):
    found = ranks_of(tmp_path, shared_out(names, 2))
    for result in found:
        figures = result["figures"]
        assert result["ok"] and figures["wrong"] == 0 and figures["qps"] == 4 and figures["qps_per_second"] > 0
        assert figures["posted_max_over_min"] <= 1.15 and figures["low_latency_combine_s"] > 0
        text = "\n".join(result["lines"])
        assert "bit for bit" in text and "4 queue pairs leave as planned (planned)" in text and "WRONG" not in text
        assert result["config"]["kernels"] == "on the CPU runner"


def test_two_ranks_of_each_host_share_memory_and_ports(names, tmp_path):
    for result in ranks_of(tmp_path, shared_out(names, 2), "--rounds", "1", each=2):
        figures, text = result["figures"], "\n".join(result["lines"])
        assert result["ok"] and figures["wrong"] == 0 and figures["qps"] == 8, text
        assert "bit for bit" in text and "8 queue pairs leave as planned (planned)" in text
        assert result["config"]["ranks_per_host"] == 2


@pytest.mark.parametrize(("each", "said"), [(0, "ranks cannot be split over hosts"), (2, "no such hosts"),
                                            (3, "ranks cannot be split over hosts")])  # fmt: skip
def test_hosts_that_cannot_be(each, said):
    place = ("--meet", "file:/nowhere", "--rank", "0", "--ranks", "2", "--ranks-per-host", str(each))
    with pytest.raises(BadArgument, match=f"{said} .value --ranks-per-host {each} of 2 ranks"):
        bench_hosts.hosts(parsed("hosts", *place))


def test_a_plan_that_idles_a_port_fails(names, tmp_path):
    devices = shared_out(names, 2)
    if len(devices[0]) == 1:
        pytest.skip("one port: rdmakit connectx --nics 4")
    for result in ranks_of(tmp_path, devices, "--policy", "first-half", "--rounds", "1"):
        text = "\n".join(result["lines"])
        assert not result["ok"] and "ports are not used alike" in text and "port 2 carries nothing" in text
        assert result["figures"]["wrong"] == 0  # the bytes are right all the same


def test_a_mesh_of_all_devices(names):
    result = bench_mesh.mesh(parsed("mesh", "--devices", ",".join(names), "--ranks", "2", "--qps", "5"))
    assert result["ok"] and result["figures"]["qps"] == 10 and result["figures"]["qps_per_second"] > 0
    assert {"meet_s", "create_s", "exchange_s", "connect_s"} <= set(result["figures"])
