"""The command line: exit status, one JSON object, typed errors with their remedy, progress."""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdmakit.cli import main, parser
from rdmakit.cli.info import findings
from rdmakit.cli.progress import Progress
from rdmakit.errors import NotAvailable


def test_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "rdmakit", "info", "--json"], capture_output=True, text=True)
    assert done.returncode == (0 if json.loads(done.stdout)["ok"] else 1), done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_output_that_cannot_be_written_is_said_and_not_traced(options):
    full, command = Path("/dev/full"), [sys.executable, "-m", "rdmakit", "info", *options]
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    with full.open("w") as nowhere:
        done = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the output could not be written")
    assert "remedy: " in done.stderr and "Traceback" not in done.stderr and "ignored" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1 and not done.stderr, "who reads has left, and wants no more"


def test_info_prints_one_json_object(capsys):
    main(["info", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result["ok"], bool) and isinstance(result["config"], dict)
    assert all(isinstance(number, int | float) for number in result["figures"].values())
    assert {finding["part"] for finding in result["findings"]} <= set(result["figures"])


def test_info_says_what_to_do_about_all_that_is_missing():
    assert [f for f in findings("/nowhere") if not f.present and not f.remedy] == []


def test_info_reads_devices_from_files(tmp_path):
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    for name, text in (("link_layer", "Ethernet"), ("state", "4: ACTIVE"), ("rate", "200 Gb/sec (4X HDR)")):
        (port / name).write_text(text + "\n")
    gpu = tmp_path / "proc/driver/nvidia/gpus/0000:17:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 60\n")
    found = {finding.part: finding.what for finding in findings(tmp_path)}
    assert found["rdma"] == "mlx5_0 (no driver): port 1 Ethernet ACTIVE 200 Gb/sec (4X HDR)"
    assert found["gpu"] == "NVIDIA H100 80GB HBM3 at 0000:17:00.0"


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for child in action.choices.values():
            yield from leaves(child)
    if not nested:
        yield parser


@pytest.mark.parametrize("command", list(leaves(parser())), ids=lambda leaf: leaf.prog)
def test_every_subcommand_takes_json(command):
    assert "--json" in command.format_help()
    assert callable(command.get_default("func"))


@pytest.mark.parametrize("as_json", [False, True])
def test_typed_error_exits_2_with_its_remedy(monkeypatch, capsys, as_json):
    def refuse(args):
        raise NotAvailable("no such thing", value="x", rule="a rule", remedy="a remedy")

    monkeypatch.setattr("rdmakit.cli.info.main", refuse)
    assert main(["info", "--json"] if as_json else ["info"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: no such thing (value x)") and "remedy: a remedy" in err
    assert not out if not as_json else json.loads(out)["error"]["remedy"] == "a remedy"


def test_bad_command_line_exits_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["no-such-command"])
    assert stopped.value.code == 2
    assert "no-such-command" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m rdmakit decode --kind cqe {'00' * 64} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_progress_is_silent_for_two_seconds(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    with Progress("copying", total=9, stream=stream) as progress:
        progress.step("a")
        now += 1.9
        progress.step("b")
        assert stream.getvalue() == ""
        now += 0.2
        progress.step("c")
        progress.step("d")
    assert stream.getvalue() == "copying: 3/9 c, 2 s\n"


def test_progress_keeps_to_one_line_of_a_terminal(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress("copying", stream=stream) as progress:
        for _ in range(3):
            now += 3
            progress.step()
    assert stream.getvalue() == "".join(f"\r\033[Kcopying: {n}, {3 * n} s" for n in (1, 2, 3)) + "\r\033[K"


def test_progress_of_a_known_length_has_a_bar(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress("sweep", total=4, stream=stream) as progress:
        for _ in range(4):
            now += 3
            progress.step("x")
    drawn = stream.getvalue().split("\r\033[K")
    assert drawn[1] == f"sweep: {'█' * 5}{'░' * 15} 1/4 x, 3 s" and drawn[4] == f"sweep: {'█' * 20} 4/4 x, 12 s"
    assert drawn[-1] == ""


def test_a_terminal_sees_that_there_is_something_to_wait_for(monkeypatch):
    monkeypatch.setattr("rdmakit.cli.progress.PATIENCE", 0.01)
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Progress("sweep", total=4, stream=stream):
        until = time.monotonic() + 10
        while not stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert f"sweep: {'░' * 20} 0/4, " in stream.getvalue()
    quiet = io.StringIO()
    quiet.isatty = lambda: True
    with Progress("sweep", total=4, stream=quiet, quiet=True):
        time.sleep(0.1)
    assert quiet.getvalue() == ""


def test_make_names_the_packages_that_are_missing():
    root = Path(__file__).resolve().parents[2]
    command = ["make", "--no-print-directory", "check", "PYTHON=no-such-python"]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env={**os.environ, "CXX": "no-such-compiler"}
    )
    assert done.returncode != 0
    assert "apt-get install -y python3 python3-venv python3-dev g++" in done.stdout
    assert "dnf install -y python3 python3-devel gcc-c++" in done.stdout


def test_demo_survives_a_fault_plan_and_says_what_happened(capsys):
    shape = ["--hosts", "2", "--tokens", "16", "--hidden", "256", "--channels", "2", "--routing", "uniform", "--json"]
    assert main(["demo", *shape, "--faults", "loss=0.02,ack_lost=0.02,delay=3us"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] and result["config"]["faults"] == "loss=0.02,ack_lost=0.02,delay=3us"
    assert result["figures"]["faults_loss"] > 0 and result["figures"]["faults_delay"] > 0


def test_demo_refuses_a_plan_that_is_none(capsys):
    assert main(["demo", "--faults", "loss=2"]) == 2
    assert "no probability" in capsys.readouterr().err
