"""`rdmakit doctor` as a user sees it: lines, colours, JSON, exit status; and under `rdmakit connectx` for real."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machine_tree import Host

from rdmakit.cli import main
from rdmakit.cli.doctor.check import Check, Result, failed, passed, skipped, warned
from rdmakit.cli.doctor.checks import CHECKS
from rdmakit.cli.doctor.report import Style, lines_of
from rdmakit.cli.doctor.schema import SCHEMA
from rdmakit.emu.uverbs import missing, preloaded

ROOT = Path(__file__).resolve().parents[2]
ESCAPE = re.compile(r"\033\[[0-9;]*m")


def conforms(found):
    """By the schema's own rules where jsonschema is installed, and by hand for what everyone leans on."""
    assert set(found) >= {"ok", "figures", "config", "checks"} and found["ok"] == (found["figures"]["fail"] == 0)
    assert sum(found["figures"].values()) == len(found["checks"])
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_json_of_a_captured_tree(host, capsys):
    assert main(["doctor", "--root", str(host.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    conforms(found)
    assert [check["name"] for check in found["checks"]] == [check.name for check in CHECKS]
    assert found["config"]["root"] == str(host.root) and found["figures"]["fail"] == 0


def test_one_device_alone(host, capsys):
    host.sys("class/infiniband/mlx5_1/ports/1/state", "1: DOWN")
    assert main(["doctor", "--root", str(host.root), "--device", "mlx5_0", "--json"]) == 0
    by_name = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert by_name["devices"]["said"].startswith("mlx5_0") and "mlx5_1" not in by_name["devices"]["said"]
    assert by_name["state"]["verdict"] == "PASS"
    assert main(["doctor", "--root", str(host.root), "--device", "mlx5_9"]) == 2
    assert "mlx5_9" in (said := capsys.readouterr().err) and "mlx5_0, mlx5_1" in said


def test_a_failure_is_the_exit_status(host, capsys):
    host.memlock(65536)
    assert main(["doctor", "--root", str(host.root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    conforms(found)
    assert [check["name"] for check in found["checks"] if check["verdict"] == "FAIL"] == ["memlock"]
    assert main(["doctor", "--root", str(host.root)]) == 1
    out = capsys.readouterr().out
    assert "  FAIL  memlock    only 64 KiB may be pinned" in out and "[docs/doctor.md#locked-memory]" in out


def test_warnings_are_no_failure(host, capsys):
    host.params(dwords="")
    assert main(["doctor", "--root", str(host.root)]) == 0
    assert "  WARN  override" in capsys.readouterr().out


def test_what_is_needed_must_be_there(host, capsys):
    host.no_gpus()
    assert main(["doctor", "--root", str(host.root)]) == 0
    assert main(["doctor", "--root", str(host.root), "--need", "gpu"]) == 1
    assert "  FAIL  driver     no NVIDIA GPU" in capsys.readouterr().out


def test_the_schema_is_printed_and_strict(capsys):
    assert main(["doctor", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    check = {"name": "x", "group": "g", "verdict": "PASS", "said": "s", "remedy": "", "link": "docs/doctor.md#x",
             "facts": {}}  # fmt: skip
    good = {"ok": True, "figures": {"pass": 1, "warn": 0, "fail": 0, "skip": 0}, "checks": [check],
            "config": {"rdmakit": "", "python": "", "platform": "", "root": "/", "host": ""}}  # fmt: skip
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(good)
    for bad in ({**check, "verdict": "MAYBE"}, {**check, "said": ""}, {**check, "link": "elsewhere"}, {"name": "x"}):
        assert not validator.is_valid({**good, "checks": [bad]})
    assert not validator.is_valid({**good, "other": 1})


def test_the_page_describes_every_key():
    page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8").partition("## JSON")[2].partition("\n---")[0]
    item = SCHEMA["properties"]["checks"]["items"]["properties"]
    for key in (*SCHEMA["properties"], *item, *SCHEMA["properties"]["ranks"]["properties"]):
        assert f"`{key}`" in page, key


# ---- the terminal
def result(name, group, answer, section="Port state"):
    return Result(Check(name, group, section, lambda machine: answer), answer)


RESULTS = [
    result("state", "ports", passed("2 ACTIVE")),
    result("gids", "ports", skipped("no RDMA device")),
    result("mtu", "ports", skipped("no RDMA device")),
    result("lag", "spread", skipped("no RDMA device")),
    result("plan", "spread", warned("uneven " * 30, "even it " * 30)),
    result("driver", "gpu", failed("no driver", "install it", n=1)),
]


@pytest.mark.parametrize("width", [80, 97, 120])
def test_lines_fit_and_say_everything(width):
    lines = list(lines_of(iter(RESULTS), Style(width, colour=False)))
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for each in RESULTS:
        assert " ".join(each.answer.said.split()) in text and " ".join(each.answer.remedy.split()) in text
    assert "gids, mtu: no RDMA device" in text, "neighbours that are skipped alike are one line"
    assert lines.index("spread") < lines.index("  SKIP  lag        no RDMA device"), "groups stay apart"
    assert sum("docs/doctor.md#port-state" in line for line in lines) == 2, "a link where something is to be done"


def test_each_line_comes_as_soon_as_it_is_known():
    seen = []

    def slow():
        for each in RESULTS:
            seen.append(each.check.name)
            yield each

    lines = lines_of(slow(), Style(80, colour=False))
    assert next(lines) == "ports" and "2 ACTIVE" in next(lines) and seen == ["state"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, environment, colour", [
    (Terminal(), {}, True), (Terminal(), {"NO_COLOR": "1"}, False), (Terminal(), {"TERM": "dumb"}, False),
    (io.StringIO(), {}, False),
])  # fmt: skip
def test_colour_is_for_terminals_that_want_it(stream, environment, colour):
    style = Style.of(stream, environment)
    assert style.colour is colour and 80 <= style.width <= 120
    text = "\n".join(lines_of(iter(RESULTS), style))
    assert ("\033[" in text) is colour
    assert ESCAPE.sub("", text) == "\n".join(lines_of(iter(RESULTS), Style(style.width, colour=False)))


def test_on_a_pseudo_terminal_verdicts_are_coloured(host):
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "90"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([sys.executable, "-m", "rdmakit", "doctor", "--root", str(host.root)], stdout=child,
                          env=environment) as running:  # fmt: skip
        os.close(child)
        text = b""
        while chunk := _read(parent):
            text += chunk
    os.close(parent)
    assert running.returncode == 0 and b"\033[32mPASS\033[0m" in text
    first, *lines = text.decode().splitlines()
    assert str(host.root) in first and max(len(ESCAPE.sub("", line)) for line in lines) <= 90


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # EIO: the other end is closed
        return b""


# ---- real runs
def doctor(environment, *options):
    command = [sys.executable, "-m", "rdmakit", "doctor", "--alone", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT,
                          env={**environment, "PYTHONPATH": str(ROOT)})  # fmt: skip


def test_this_machine_as_it_is():
    done = doctor(os.environ, "--json")
    found = json.loads(done.stdout)
    conforms(found)
    assert done.returncode == (0 if found["ok"] else 1) and done.stderr == "", done.stderr
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts["emulator"] in ("PASS", "WARN") and verdicts["compiler"] == "PASS"
    shown = doctor(os.environ)
    assert "\033" not in shown.stdout and max(map(len, shown.stdout.splitlines())) <= 100
    assert re.search(r"\d+ PASS, \d+ WARN, \d+ FAIL, \d+ SKIP; docs/doctor.md", shown.stdout)


def test_emulated_nics_pass_what_can_be_tried():
    if missing():
        pytest.skip(missing())
    with preloaded(2) as environment:
        done = doctor(environment, "--json", "--need", "rdma")
    found = json.loads(done.stdout)
    conforms(found)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in found["checks"]}
    for name in ("libibverbs", "devices", "state", "gids", "mtu", "loopback", "steering", "plan"):
        assert checks[name]["verdict"] == "PASS", checks[name]
    assert checks["loopback"]["facts"] == {f"mlx5_{i}": "mlx5 queues" for i in range(2)}
    assert set(checks["mtu"]["facts"].values()) == {4096}
    assert checks["doorbell"]["facts"]["blueflame"] > 0, "the register was found, whether or not a GPU could map it"
