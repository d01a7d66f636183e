"""`--json` of the commands that measure: strict JSON, the shape {ok, figures, config}, names that scripts rely on."""

import json

import pytest

from rdmakit.cli import bench, bench_emu, demo, main
from rdmakit.ep.verify import Check

DEMO = {"checks", "checks_failed", "seconds", "port_bytes_max_over_min", "routing_skew"}
BENCH = {
    "queue": {"wqe_per_s"},
    "ep8": {"ep8_dispatch_combine_s", "ep8_peak_gib"},
    "ranks64": {"ranks64_control_s"},
    "linear": {"linear_exponent", "linear_steps_growth"},
}
SMALL = ["--tokens", "8", "--hidden", "128"]


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def one_object(text):
    """The single JSON object that was printed; NaN and infinities are none."""
    found = json.loads(text, parse_constant=no_constant)
    assert set(found) >= {"ok", "figures", "config"} and isinstance(found["ok"], bool)
    assert all(type(number) in (int, float) for number in found["figures"].values())
    return found


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--channels", "1"],  # one of two ports stays idle
        ["--tokens", "0"],
        ["--hosts", "1", "--gpus-per-host", "1"],
        ["--routing", "zipf", "--lag", "hash", "--policy", "fast"],
        ["--routing", "group-limited", "--lag", "affinity"],
    ],
    ids=" ".join,
)
def test_demo(options, capsys):
    assert main(["demo", "--json", *SMALL, *options]) == 0
    found = one_object(capsys.readouterr().out)
    assert found["ok"] and set(found["figures"]) >= DEMO
    assert found["figures"]["checks"] > 0 and found["figures"]["checks_failed"] == 0
    assert found["config"]["hidden"] == 128


def test_demo_says_all_that_happened(capsys):
    assert main(["demo", *SMALL]) == 0
    out = capsys.readouterr().out
    for word in ("port 1", "port 2", "WQEs", "doorbells", "CQEs", "signals", "virtual time (modelled", "routing skew"):
        assert word in out


def test_a_check_that_fails_is_status_1(capsys, monkeypatch):
    monkeypatch.setattr(demo, "_check_conservation", lambda buffer: [Check("made to fail", -1, False, "as planned")])
    assert main(["demo", "--json", *SMALL]) == 1
    found = one_object(capsys.readouterr().out)
    assert not found["ok"] and found["figures"]["checks_failed"] == 1
    assert main(["demo", *SMALL]) == 1
    assert "FAIL made to fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [["--hosts", "0"], ["--hidden", "100"], ["--tokens", "-1"], ["--seed", "-1"], ["--gpus-per-host", "3"]],
    ids=" ".join,
)
def test_sizes_that_cannot_be_are_status_2(options, capsys):
    assert main(["demo", "--json", *SMALL, *options]) == 2
    out, err = capsys.readouterr()
    error = one_object(out)["error"]
    assert error["rule"] and error["remedy"] and err.startswith("error: ")


def test_bench_runs_a_part_in_a_process_of_its_own(capsys):
    assert main(["bench", "emu", "--json", "--only", "ep8", *SMALL]) == 0
    found = one_object(capsys.readouterr().out)
    assert set(found["figures"]) == BENCH["ep8"] and found["config"] == {"tokens": 8, "hidden": 128, "seed": 1}


def test_bench_has_every_figure_of_its_parts():
    """The message rate on few words; the others are run at their own size by `make bench` only."""
    assert set(bench.PARTS) == set(BENCH)
    found = bench_emu.queue(seed=1, words=1 << 12)
    assert found["ok"] and set(found["figures"]) == BENCH["queue"]


def test_bench_fails_when_a_part_does(capsys, monkeypatch):
    monkeypatch.setattr(bench, "_isolated", lambda part, options: {"ok": part != "ep8", "figures": {}, "lines": [part]})
    assert main(["bench", "emu"]) == 1
    assert main(["bench", "emu", "--only", "queue"]) == 0
    assert capsys.readouterr().out.split() == [*bench.PARTS, "queue"]
