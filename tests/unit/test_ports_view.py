"""`rdmakit ports`: counters of a captured tree, as rates."""

import json

import pytest

from rdmakit.cli import main
from rdmakit.cli.ports import Port, rates, read_ports


@pytest.fixture
def tree(tmp_path):
    for port, words in ((1, 1000), (2, 10)):
        folder = tmp_path / f"sys/class/infiniband/mlx5_bond_0/ports/{port}"
        (folder / "counters").mkdir(parents=True)
        (folder / "hw_counters").mkdir()
        (folder / "gid_attrs/ndevs").mkdir(parents=True)
        (folder / "gid_attrs/ndevs/0").write_text("bond0\n")
        (folder / "counters/port_xmit_data").write_text(f"{words}\n")
        (folder / "counters/port_rcv_data").write_text("8\n")
        (folder / "hw_counters/np_cnp_sent").write_text("7\n")
        (folder / "hw_counters/rp_cnp_handled").write_text("not a number\n")
    return tmp_path


def test_counters_are_read_in_bytes(tree):
    first, second = read_ports(tree)
    assert first.name == "mlx5_bond_0 port 1" and first.netdev == "bond0"
    assert (
        first.counters == {"xmit_bytes": 4000, "rcv_bytes": 32, "cnp_sent": 7} and second.counters["xmit_bytes"] == 40
    )
    assert read_ports(tree / "nowhere") == []


def test_rates_survive_resets_and_ports_that_come():
    before = [Port("a", 1, "", {"xmit_bytes": 1000, "cnp_sent": 5})]
    after = [Port("a", 1, "", {"xmit_bytes": 3000, "cnp_sent": 2, "new": 9}), Port("b", 1, "", {"xmit_bytes": 1})]
    assert rates(before, after, 2.0) == {"a port 1": {"xmit_bytes": 1000.0, "cnp_sent": 1.0}}


def test_command(tree, capsys):
    assert main(["ports", "--root", str(tree), "--every", "0.01", "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert "mlx5_bond_0 port 2" in out and "cnp_sent" in out
    assert main(["ports", "--root", str(tree), "--every", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["mlx5_bond_0_port_1_xmit_bytes_per_s"] == 0


@pytest.mark.parametrize("bad", [["--every", "0"], ["--count", "-1"], ["--every", "nan"]])
def test_refusals(tree, bad, capsys):
    assert main(["ports", "--root", str(tree), *bad]) == 2
    assert "remedy" in capsys.readouterr().err


def test_no_ports(tmp_path, capsys):
    assert main(["ports", "--root", str(tmp_path), "--every", "0.01"]) == 2
    assert "no RDMA ports" in capsys.readouterr().err
