"""`rdmakit doctor --capture`: a copy of a machine's files says what the machine says."""

import json
import os
from pathlib import Path

import pytest
from machine_tree import Host

from rdmakit.cli import main
from rdmakit.cli.doctor.capture import capture
from rdmakit.cli.doctor.checks import examine
from rdmakit.cli.doctor.machine import Machine
from rdmakit.verbs.topology import read_topology


def answers(root):
    return {result.check.name: result.answer for result in examine(Machine.here(root))}


def healthy(host):
    host.sys("class/net/eth0/mtu", "9000")


TROUBLE = {
    "nothing": healthy,
    "a bond": lambda host: host.bond(policy="layer2 0", down=["eth1"]),
    "queue affinity by debugfs": lambda host: (
        host.bond(), host.sys("kernel/debug/mlx5/0000:14:00.0/lag/port_sel_mode", "queue_affinity")),
    "little of everything": lambda host: (host.memlock(65536), host.params(""), host.remove("sys/module/mlx5_ib")),
    "no NICs": lambda host: host.no_nics(),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_capture_answers_as_its_machine_does(tmp_path, trouble):
    host = Host(tmp_path / "machine")
    TROUBLE[trouble](host)
    count = capture(tmp_path / "copy", host.root)
    assert count > 20 and answers(tmp_path / "copy") == answers(host.root)
    before, after = (read_topology(tmp_path / name / "sys") for name in ("machine", "copy"))
    assert after.to_dict() == before.to_dict()


def test_a_capture_can_be_moved(tmp_path):
    """Links are relative: nothing in the copy points back to the machine."""
    host = Host(tmp_path / "machine")
    capture(tmp_path / "copy", host.root)
    expected = answers(host.root)
    (tmp_path / "machine").rename(tmp_path / "gone")
    (tmp_path / "copy").rename(tmp_path / "elsewhere")
    assert answers(tmp_path / "elsewhere") == expected


def test_entries_of_gid_tables_that_are_not_set_are_left_out(tmp_path):
    """soft-RoCE's tables have 1024 places."""
    host, port = Host(tmp_path / "machine"), "class/infiniband/mlx5_0/ports/1"
    for index in range(1, 400):
        host.sys(f"{port}/gids/{index}", "0000" + 7 * ":0000")
        host.sys(f"{port}/gid_attrs/types/{index}", "RoCE v2")
    host.sys(f"{port}/gids/400", "fd00" + 6 * ":0000" + ":0001")
    host.sys(f"{port}/gid_attrs/types/400", "RoCE v2")
    assert capture(tmp_path / "copy", host.root) < 150
    kept = sorted(path.name for path in (tmp_path / "copy/sys" / port / "gids").iterdir())
    assert kept == sorted(path.name for path in (tmp_path / "copy/sys" / port / "gid_attrs/types").iterdir())
    assert kept == ["0", "400"] and answers(tmp_path / "copy") == answers(host.root)


def test_what_cannot_be_read_is_left_out(tmp_path):
    host = Host(tmp_path / "machine")
    odd = host.tree.root / "class/infiniband/mlx5_0/ports/1/gids/1"
    os.symlink("nowhere", odd)
    capture(tmp_path / "copy", host.root)
    assert answers(tmp_path / "copy") == answers(host.root)


def test_the_command_captures_this_machine(tmp_path, capsys):
    target = tmp_path / "here"
    assert main(["doctor", "--capture", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["figures"]["files"] > 0
    assert (target / "proc/self/limits").read_text().startswith("Limit")
    assert not (target / "proc/self").is_symlink()
    if Path("/sys/class/net/lo/mtu").exists():
        assert (target / "sys/class/net/lo/mtu").exists()
    assert main(["doctor", "--root", str(target), "--json"]) in (0, 1)
    capsys.readouterr()
    assert main(["doctor", "--capture", str(target)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_root_that_is_no_machine_is_refused(tmp_path, capsys):
    assert main(["doctor", "--root", str(tmp_path / "nowhere")]) == 2
    assert "--capture" in capsys.readouterr().err
