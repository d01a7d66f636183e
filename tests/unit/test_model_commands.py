"""ladder, validate, trace, sweep: what they print, what they refuse, and that their figures are those of the runs."""

import csv
import json
import math
import multiprocessing
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rdmakit.cli import main
from rdmakit.errors import BadArgument, BadState
from rdmakit.model import load, sensitivity
from rdmakit.model.calibrate import FREE, Free, _offset, fit
from rdmakit.model.ladder import Ladder, climb
from rdmakit.model.measure import measure
from rdmakit.model.published import POINTS, point_of
from rdmakit.model.runs import Run, run_all
from rdmakit.model.steps import STEPS
from rdmakit.model.sweep import sweep
from rdmakit.model.trace import KINDS, record
from rdmakit.model.validate import Comparison, ruler, run_of
from rdmakit.model.workload import sized_for
from rdmakit.show.perfetto import check_trace, trace_json

SMALL = ["--set", "hosts=2", "--set", "gpus_per_host=2", "--tokens", "24", "--channels", "4"]


def one_object(text):
    found = json.loads(text)
    assert isinstance(found["ok"], bool)
    assert all(type(v) in (int, float) and math.isfinite(v) for v in found["figures"].values())
    return found


# ---- ladder
def test_ladder(capsys, tmp_path):
    svg = tmp_path / "ladder.svg"
    options = [*SMALL, "--jobs", "1", "--svg", str(svg)]
    assert main(["ladder", "--preset", "roce", "--seeds", "2", "--json", *options]) == 0
    figures = one_object(capsys.readouterr().out)["figures"]
    assert set(figures) >= {"gain_total", "port_payload_fraction", "seconds", *(f"step{i}_gbs" for i in range(6))}
    assert figures["gain_least"] <= figures["gain_total"] <= figures["gain_most"] and figures["step0_gbs"] > 0
    assert "prefers-color-scheme" in svg.read_text()
    assert main(["ladder", "--preset", "ib", *options]) == 0
    out = capsys.readouterr().out
    words = ("CPU proxy", "IBGDA", "where the time goes", "ports full of payload", "waits for", "modelled")
    assert all(word in out for word in (*words, "step 5 is bound by"))


def test_ladder_is_the_runs_it_names():
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(preset, "normal", "dispatch", tokens=24, channels=4)
    ladder = climb(preset, work, jobs=1)
    alone = measure(preset, work, STEPS[5])
    assert ladder.steps[5].microseconds == alone.microseconds and ladder.gbs(5) == alone.logical_gbs
    assert ladder.gain_total == pytest.approx(ladder.steps[5].logical_gbs / ladder.steps[0].logical_gbs)
    assert [s.step for s in ladder.steps] == list(range(6))


@pytest.mark.parametrize(
    "busy, says",
    [
        ({"port send": 0.46, "NVLink": 0.95}, "bound by NVLink (95% busy), not by the ports (47%)"),
        ({"port send": 0.97, "NVLink": 0.95}, "bound by the ports (97% busy)"),
        ({"port send": 0.3, "NVLink": 0.6}, "bound by nothing that is busy (ports 47%, NVLink 60%)"),
        ({"PCIe read": 0.91, "NVLink": 0.92}, "bound by PCIe read (91% busy) and NVLink (92% busy)"),
    ],
)
def test_the_last_step_says_what_it_waits_for(busy, says):
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(preset, "normal", "dispatch", tokens=24, channels=4)
    run = measure(preset, work, STEPS[5])
    quiet = dict.fromkeys(run.usage.busiest, 0.1)
    usage = replace(run.usage, busiest=quiet | {"port receive": 0.47} | busy)
    assert says in Ladder(preset, work, ((replace(run, usage=usage),),), 1.0).verdict()


def test_ladder_of_low_latency(capsys):
    assert main(["ladder", "--preset", "ib", "--kernel", "ll", *SMALL, "--jobs", "1", "--json"]) == 0
    assert one_object(capsys.readouterr().out)["figures"]["step5_us"] > 5


@pytest.mark.parametrize(
    "bad",
    [
        ["--ranks", "2"],
        ["--seeds", "0"],
        ["--jobs", "0"],
        ["--tokens", "0"],
        ["--preset", "x"],
        ["--svg", "/no/such/folder/x.svg"],
    ],
)
def test_ladder_refuses(bad, capsys):
    assert main(["ladder", *SMALL, "--jobs", "1", *bad]) == 2
    assert "remedy" in capsys.readouterr().err


def test_runs_on_processes_give_what_one_gives():
    run = run_of(load("ib").changed(gpus_per_host=2, hosts=2), "normal", "dispatch", 4, tokens=16)
    assert [m.microseconds for m in run_all([run, run], jobs=2)] == [
        m.microseconds for m in run_all([run, run], jobs=1)
    ]


def test_whoever_is_interrupted_waits_for_no_process():
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    small, large = (sized_for(preset, "normal", "dispatch", tokens=n, channels=2) for n in (16, 16384))
    before = set(multiprocessing.active_children())

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([Run(preset, w, STEPS[5]) for w in (small, large, large, large)], jobs=2, done=interrupted)
    end = time.monotonic() + 5
    while left := set(multiprocessing.active_children()) - before:  # the pool itself may be burying them
        assert time.monotonic() < end, left
        time.sleep(0.01)


def test_a_process_that_died_is_named():
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    run = Run(preset, sized_for(preset, "normal", "dispatch", tokens=4096, channels=2), STEPS[5])
    before = set(multiprocessing.active_children())

    def kill():
        while not (born := set(multiprocessing.active_children()) - before):
            time.sleep(0.01)
        born.pop().kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BadState, match="has died") as caught:
        run_all([run, run, run], jobs=2)
    killer.join()
    assert "memory" in caught.value.remedy


def test_what_no_world_can_be_is_refused_before_any_runs(monkeypatch):
    monkeypatch.setattr("rdmakit.model.runs._one", lambda run: pytest.fail("ran"))
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(preset, "normal", "dispatch", tokens=16, channels=2)
    for name, values, says in (
        ("channels", ["2", "600"], "1200 queue pairs"),
        ("slots", ["64", "3"], "power of two"),
        ("hidden", ["128", "100"], "multiple of 128"),
        ("nics_per_gpu", ["1 count", "2 count"], "post to one NIC"),
    ):
        with pytest.raises(BadArgument, match=says):
            sweep(preset, work, STEPS[5], name, values, jobs=1)
    with pytest.raises(BadArgument, match="seed does not fit"):
        run_of(preset, "ll", "dispatch", 4, seed=-1)


@pytest.mark.parametrize("path", ["{}/no/x", "{}", "{}/file/x", "/proc/x/y"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rdmakit.model.measure._normal", lambda *_: pytest.fail("ran"))
    (tmp_path / "file").write_text("")
    path = path.format(tmp_path)
    for command in ("ladder --svg", "sweep chunk=8 --csv", "sweep chunk=8 --svg", "trace --out"):
        assert main([*command.split(), path, *SMALL]) == 2
        said = capsys.readouterr()
        assert path in said.err and "remedy" in said.err and not said.out


@pytest.mark.parametrize("command", [["ladder"], ["sweep", "chunk=8"], ["plan"]])
def test_a_picture_of_no_format_is_refused_before_anything_runs(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rdmakit.model.measure._normal", lambda *_: pytest.fail("ran"))
    assert main([*command, "--svg", str(tmp_path / "x.pdf"), *SMALL]) == 2
    assert ".svg or .png" in capsys.readouterr().err


# ---- validate
def test_points_and_what_is_fitted():
    assert len({p.name for p in POINTS}) == len(POINTS) == 24
    fitted = {p.name for p in POINTS if p.fitted}
    assert fitted == {
        "normal_dispatch_ep32_step0",
        "normal_dispatch_ep32",
        "ll_dispatch_ep8",
        "ll_dispatch_ep64",
        "ll_combine_ep8",
        "ll_combine_ep64",
    }
    assert {name for free in FREE for name in free.points} <= fitted and len(FREE) <= 4
    marked = {name for name, setting in load("ib").settings.items() if setting.mark == "fitted"}
    assert marked == {free.parameter for free in FREE}
    assert {p.step for p in POINTS} == {0, 5} and sum(p.step == 0 for p in POINTS) == 6
    assert point_of("normal", "combine", 32, 0).value == 47 and point_of("normal", "combine", 32).value == 57
    assert point_of("ll", "combine", 128).value == 369 and point_of("normal", "dispatch", 128) is None
    with pytest.raises(BadArgument):
        point_of("ll", "sideways", 8)


def test_the_ruler_is_laid_through_fitted_points():
    assert ruler(point_of("ll", "dispatch", 64)) == pytest.approx(173)
    middle = ruler(point_of("ll", "dispatch", 16))
    assert math.log(middle) == pytest.approx(math.log(77) + (math.log(173) - math.log(77)) / 3)
    assert ruler(point_of("normal", "dispatch", 16)) == 58 and ruler(point_of("normal", "combine", 16)) is None


def test_validate(capsys):
    assert main(["validate", "--kernel", "ll", "--most-ranks", "16", "--jobs", "1", "--json"]) in (0, 1)
    found = one_object(capsys.readouterr().out)
    figures = found["figures"]
    assert figures["pairs"] == 2 and figures["points"] == 4
    error = figures["ll_dispatch_ep16_predicted"] / figures["ll_dispatch_ep16_published"] - 1
    assert figures["ll_dispatch_ep16_error"] == pytest.approx(error)
    assert figures["worst_error"] >= figures["mean_error"] >= 0 and found["ok"] == (figures["worst_error"] <= 0.15)
    assert main(["validate", "--kernel", "ll", "--op", "dispatch", "--ep", "4", "--jobs", "1"]) == 0
    assert "not published" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad",
    [
        ["--ep", "16"],
        ["--ep", "31", "--kernel", "ll", "--op", "dispatch"],
        ["--step", "9"],
        ["--ep", "24", "--kernel", "ll", "--op", "dispatch"],
        ["--ep", "8", "--kernel", "ll", "--op", "dispatch", "--seed", "-1"],
        ["--ep", "512", "--kernel", "ll", "--op", "dispatch"],
        ["--ep", "0", "--kernel", "ll", "--op", "dispatch"],
        ["--ep", "8", "--kernel", "ll", "--op", "dispatch", "--set", "hosts=2"],
        ["--most-ranks", "0"],
        ["--most-ranks", "8", "--kernel", "normal"],
        ["--step", "3"],
        ["--step", "0", "--kernel", "ll"],
    ],
)
def test_validate_refuses(bad, capsys):
    assert main(["validate", "--jobs", "1", *bad]) == 2
    assert "remedy" in capsys.readouterr().err


def test_validate_says_whose_the_published_figures_are(capsys):
    point = ["--kernel", "ll", "--op", "dispatch", "--jobs", "1"]
    assert main(["validate", *point, "--ep", "8", "--set", "nvlink_rate=20GB/s", "--json"]) == 0  # fitted: no verdict
    assert main(["validate", *point, "--ep", "16", "--set", "pcie_rate=5GB/s", "--json"]) == 1  # a worse model of it
    capsys.readouterr()
    assert main(["validate", *point, "--ep", "16", "--preset", "roce", "--set", "pcie_rate=5GB/s"]) == 0
    out = capsys.readouterr().out
    assert "2 hosts of 8 GPUs" in out and "another cluster's" in out and "difference" in out and "error  " not in out
    assert main(["validate", *point, "--ep", "4"]) == 0
    out = capsys.readouterr().out
    assert "1 host of 4 GPUs" in out and "prediction" in out and "held out" not in out


def test_one_host_counts_rows_as_the_test_of_one_host_does():
    """DeepEP's intranode test counts rows that ranks receive; between hosts, a token counts once for each host."""
    run = run_of(load("ib"), "normal", "dispatch", 8, tokens=64)
    rows = sum(len({int(e) // 32 for e in token}) for choices in run.work.choices() for token in choices)
    got = measure(run.preset, run.work, run.step)
    assert got.logical_bytes == pytest.approx(rows * run.work.row_bytes / 8) and got.wire_bytes == 0
    two = run_of(load("ib"), "normal", "dispatch", 16, tokens=64)
    hosts = sum(len({int(e) // 128 for e in token}) for choices in two.work.choices() for token in choices)
    assert measure(two.preset, two.work, two.step).logical_bytes == pytest.approx(hosts * two.work.row_bytes / 16)


def test_validate_knows_what_was_published_of_a_step(capsys, monkeypatch):
    from rdmakit.model import validate

    short = run_of
    monkeypatch.setattr(validate, "run_of", lambda *a, **k: short(*a, **{**k, "tokens": 16}))
    main(["validate", "--step", "0", "--op", "combine", "--most-ranks", "16", "--jobs", "1", "--json"])
    figures = one_object(capsys.readouterr().out)["figures"]
    assert figures["pairs"] == figures["points"] == 1 and figures["normal_combine_ep16_step0_published"] == 43


def test_validate_normal_prints_json(capsys, monkeypatch):
    from rdmakit.model import validate

    short = run_of  # as published, but for the tokens
    monkeypatch.setattr(validate, "run_of", lambda *a, **k: short(*a, **{**k, "tokens": 64}))
    main(["validate", "--kernel", "normal", "--op", "dispatch", "--ep", "16", "--jobs", "1", "--json"])
    assert one_object(capsys.readouterr().out)["figures"]["normal_dispatch_ep16_published"] == 43


def test_a_fit_of_a_gain_leaves_out_what_points_have_in_common(monkeypatch):
    """Predictions all a third too large, the first of them by what the parameter says besides."""
    from rdmakit.model import calibrate

    first, last = (point_of("normal", "dispatch", 32, step) for step in (0, 5))

    def far(preset, given, jobs=None):
        slow = 1.5 - preset["proxy_post"] / 400e3  # none at 200 ns
        return [Comparison(p, p.value * 1.33 * (slow if p == first else 1), None) for p in given]

    monkeypatch.setattr(calibrate, "compare", far)
    found = fit(load("ib"), [Free("proxy_post", 100, 1000, (first.name, last.name), gain=True)], evaluations=20)
    assert found["proxy_post"] == pytest.approx(200, rel=0.02)


def test_the_offset_is_the_least_squares_one(rng):
    points = [p for p in POINTS if p.kernel == "ll"][:5]
    rows = [Comparison(p, p.value * float(rng.uniform(0.7, 1.1)), None) for p in points]

    def cost(d):
        return sum(((r.predicted + d) / r.point.value - 1) ** 2 for r in rows)

    best = _offset(rows)
    assert cost(best) <= min(cost(best + 0.01), cost(best - 0.01))


def test_fit_finds_what_made_a_point(monkeypatch):
    """A world in which the answer is known: predictions that are the parameter itself."""
    from rdmakit.model import calibrate

    point = point_of("normal", "dispatch", 32)
    monkeypatch.setattr(
        calibrate,
        "compare",
        lambda preset, points, jobs=None: [Comparison(p, preset["pcie_rate"] / 1e9, None) for p in points],
    )
    found = fit(load("ib"), [Free("pcie_rate", 30, 90, (point.name,))], evaluations=20)
    assert found["pcie_rate"] == pytest.approx(58, rel=0.01)


def test_fit_finds_what_an_operation_has_once(monkeypatch):
    """Predictions that are all as late as the parameter says, and 3 us early beside it."""
    from rdmakit.model import calibrate

    points = [p for p in POINTS if p.kernel == "ll"][:4]

    def early(preset, given, jobs=None):
        return [Comparison(p, p.value - 3 - 10 + preset["kernel_launch"] / 1e6, None) for p in given]

    monkeypatch.setattr(calibrate, "compare", early)
    free = Free("kernel_launch", 0, 50_000, tuple(p.name for p in points), once=True)
    said: list[str] = []
    assert fit(load("ib"), [free], done=said.append)["kernel_launch"] == pytest.approx(13_000)
    assert said == ["kernel_launch 1.3e+04 ns: 0.0%"]
    with pytest.raises(BadState, match="out of its bounds"):
        fit(load("ib"), [replace(free, most=12_000)])


# ---- what a prediction rests on
def test_a_quarter_worse():
    preset = load("ib")
    names = sensitivity.assumptions(preset)
    assert {"pcie_rate", "nvlink_rate", "kernel_launch", "spines"} <= set(names)
    assert not {"port_rate", "hosts", "mtu", "ports"} & set(names)
    for name in names:
        changed = sensitivity.worse(preset, name)
        times = changed[name] / preset[name]
        assert times == pytest.approx(1.25) if times > 1 else 0.78 < times <= 0.801, name
        assert {n for n in preset.settings if changed.settings[n].value != preset.settings[n].value} == {name}


def test_sensitivities_are_runs_side_by_side():
    point = point_of("ll", "dispatch", 8)
    preset = load("ib")
    names = ["kernel_launch", "nvlink_rate", "pcie_rate"]
    found = sensitivity.sensitivities(preset, [point], names, jobs=1)[point.name]
    base = measure(preset.for_ranks(8), run_of(preset, "ll", "dispatch", 8).work, STEPS[5]).microseconds
    assert found["kernel_launch"] == pytest.approx(preset["kernel_launch"] / 1e6 / 4 / base)
    assert found["nvlink_rate"] > 0.05 and found["pcie_rate"] == 0  # one host has no NIC in the way


def test_what_was_found_for_another_preset_is_not_shown(monkeypatch, tmp_path, capsys):
    preset = load("ib")
    file = tmp_path / "kept.json"
    found = {"preset": sensitivity.fingerprint(preset), "points": {"ll_dispatch_ep8": {"nvlink_rate": 0.123}}}
    file.write_text(json.dumps(found))
    monkeypatch.setattr(sensitivity, "FILE", file)
    assert sensitivity.kept(preset.for_ranks(64)) == found["points"]
    assert not sensitivity.kept(preset.changed(pcie_rate=54)) and not sensitivity.kept(load("roce"))
    options = ["validate", "--kernel", "ll", "--op", "dispatch", "--ep", "8", "--jobs", "1"]
    assert main(options) == 0 and "nvlink_rate (+12%)" in capsys.readouterr().out
    assert main([*options, "--set", "pcie_rate=54GB/s"]) == 0 and "nvlink_rate" not in capsys.readouterr().out


@pytest.mark.skipif(not sensitivity.FILE.is_file(), reason="run benchmarks/sensitivity.py: it takes minutes")
def test_what_is_kept_is_the_presets():
    kept = sensitivity.kept(load("ib"))
    assert {p.name for p in POINTS if p.ranks <= 16} <= kept.keys(), "run benchmarks/sensitivity.py again"


# ---- trace
def test_trace(capsys, tmp_path):
    out = tmp_path / "trace.json"
    assert main(["trace", "--preset", "ib", *SMALL, "--out", str(out), "--json"]) == 0
    figures = one_object(capsys.readouterr().out)["figures"]
    text = out.read_text()
    assert check_trace(text) == [] and len(text.encode()) >= figures["bytes"]
    assert figures["wire_events"] == figures["executed_events"] == figures["cqe_events"] > 0
    assert figures["reserve_events"] == figures["publish_events"] > 0
    assert 0 < figures["doorbell_events"] == figures["doorbell_record_events"] <= figures["publish_events"]
    names = {
        e["args"]["name"] for e in json.loads(text)["traceEvents"] if e["ph"] == "M" and e["name"] == "process_name"
    }
    assert names == {"GPU 0", "GPU 1", "GPU 2", "GPU 3", "NIC 0", "NIC 1", "NIC 2", "NIC 3"}
    assert main(["trace", "--preset", "ib", *SMALL, "--of", "1", "--out", str(out)]) == 0
    assert out.stat().st_size < len(text) / 2 and "GPU 1" in out.read_text() and "GPU 0" not in out.read_text()
    assert main(["trace", *SMALL, "--of", "9", "--out", str(out)]) == 2
    assert main(["trace", *SMALL, "--out", str(tmp_path / "no" / "t.json")]) == 2


def test_viewers_lose_nothing(tmp_path):
    """What Perfetto 52 dropped, when it was opened with the EP32 ladder's last step: slices of a port that overlap."""
    out = tmp_path / "trace.json"
    assert main(["trace", "--set", "pcie_rate=20GB/s", *SMALL, "--set", "hosts=4", "--out", str(out)]) == 0
    whole = json.loads(out.read_text())
    events = whole["traceEvents"]
    assert whole["displayTimeUnit"] == "ns" and whole["otherData"]["time"] == "modelled"
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    order = {(e["pid"], e["tid"]): e["args"]["sort_index"] for e in events if e["name"] == "thread_sort_index"}
    assert order.keys() == tracks.keys() and {(e["pid"], e["tid"]) for e in events if e["ph"] in "Xi"} <= tracks.keys()
    assert any("lane 2" in name for name in tracks.values()), "no port was busy twice: nothing is tested"
    wires = {(e["pid"], e["name"], e["args"]["wqe"]): e for e in events if "bytes" in e.get("args", {})}
    flows = {}
    for event in events:
        if event["ph"] in "stf":
            flows.setdefault(event["id"], []).append(event)
    assert len(flows) == len(wires) > 0
    for arrow in flows.values():
        assert [e["ph"] for e in arrow] == ["s", "t", "f"] and [e["ts"] for e in arrow] == sorted(
            e["ts"] for e in arrow
        )
        names = [tracks[e["pid"], e["tid"]].split()[0] for e in arrow]
        assert names == ["warp", "port", "QP"]
    lane = next(e for e in events if e["ph"] == "X" and "lane 2" in tracks[e["pid"], e["tid"]])
    lane["tid"] -= 1  # back onto the port's first track
    assert any("overlaps" in problem for problem in check_trace(json.dumps(whole)))


@pytest.mark.parametrize(
    "options",
    [
        # Many warps share a queue pair: the NIC reads a doorbell record that another warp has moved on.
        ["--kernel", "ll", "--set", "gpus_per_host=2"],
        # Four ranks share two NICs: messages that touch in picoseconds must not overlap in nanoseconds.
        ["--kernel", "ll", "--set", "gpus_per_host=4", "--set", "nics_per_gpu=0.5"],
    ],
)
def test_arrows_follow_a_wqe_in_time(tmp_path, options):
    out = tmp_path / "trace.json"
    small = ["--set", "hosts=2", "--tokens", "16", "--channels", "2"]
    assert main(["trace", *small, *options, "--out", str(out)]) == 0
    arrows = {}
    for event in json.loads(out.read_text())["traceEvents"]:
        if event["ph"] in "stf":
            arrows.setdefault(event["id"], []).append(event["ts"])
    assert arrows and all(len(times) == 3 and times == sorted(times) for times in arrows.values())


@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_receivers_see_signals_in_low_latency_too(op):
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(preset, "ll", op, tokens=8, channels=2)
    got = measure(preset, work, STEPS[5], timeline=True)
    seen = got.timeline.of("signal seen")
    assert got.microseconds == measure(preset, work, STEPS[5]).microseconds  # looking costs nothing
    assert set(seen["unit"].tolist()) == set(range(4)) and len(seen) >= work.experts * (4 if op == "dispatch" else 1)
    if op == "dispatch":  # an expert's tokens from each rank: their number is the signal
        assert int(seen["index"].sum()) == work.ranks * work.tokens * work.topk


def test_a_wqe_lives_in_order():
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    got = measure(preset, sized_for(preset, "normal", "dispatch", tokens=24, channels=2), STEPS[5], timeline=True)
    timeline = got.timeline
    assert timeline is not None and timeline.left_out == 0 and sum(timeline.counts().values()) == len(timeline.events)
    assert (np.diff(timeline.events["when_ps"].astype(np.int64)) >= 0).all()
    wire, done, seen = timeline.of("wire"), timeline.of("CQE"), timeline.of("executed")
    key = [
        (u, q, i) for u, q, i in zip(wire["unit"].tolist(), wire["qpn"].tolist(), wire["index"].tolist(), strict=True)
    ]
    ends = dict(zip(key, wire["until_ps"].tolist(), strict=True))
    assert len(ends) == len(key)
    executed = {(e["unit"], e["qpn"], e["index"]): e["when_ps"] for e in seen}
    for e in done:
        name = (e["unit"], e["qpn"], e["index"])
        assert ends[name] < executed[name] < e["when_ps"]
    # A doorbell comes behind its record, and nothing is on the wire before the first doorbell of its queue pair.
    bells = timeline.of("doorbell")
    first = {int(q): int(bells["when_ps"][bells["qpn"] == q].min()) for q in np.unique(bells["qpn"])}
    assert all(int(w["when_ps"]) > first[int(w["qpn"])] for w in wire)
    with pytest.raises(BadArgument):
        timeline.of("nothing")
    assert set(timeline.counts()) == set(KINDS.values())


def test_what_is_no_trace():
    assert check_trace("{") and check_trace("[1]") and check_trace('{"a": 1}')
    for event in (
        {"ph": "Z"},
        {"ph": "X", "name": "a", "ts": -1, "dur": 1, "pid": 1, "tid": 1},
        {"ph": "i", "s": "x", "name": "a", "ts": 1, "pid": 1, "tid": 1},
        {"ph": "X", "name": "a", "ts": True, "dur": 1, "pid": 1, "tid": 1},
        {"ph": "s", "name": "a", "ts": 1, "pid": 1, "tid": 1},
        {"ph": "s", "name": "a", "ts": 1, "pid": 1, "tid": 1, "id": 3},
    ):
        assert check_trace(trace_json([event])), event
    from rdmakit import World

    with pytest.raises(BadArgument):
        record(World(), lambda: None, {})


# ---- sweep
def test_sweep(capsys, tmp_path):
    table, svg = tmp_path / "s.csv", tmp_path / "s.svg"
    options = ["--preset", "ib", *SMALL, "--jobs", "1", "--csv", str(table), "--svg", str(svg)]
    assert main(["sweep", "port_rate=20Gb/s,400Gb/s", "--seeds", "2", "--json", *options]) == 0
    found = one_object(capsys.readouterr().out)
    figures = found["figures"]
    assert found["config"]["values"] == ["20 Gb/s", "400 Gb/s"]
    assert figures["value0_gbs"] < figures["value1_gbs"] and figures["value0_gbs_least"] <= figures["value0_gbs_most"]
    rows = list(csv.DictReader(table.open()))
    assert [r["port_rate"] for r in rows] == ["20 Gb/s", "400 Gb/s"]
    assert float(rows[0]["logical_gbs"]) == pytest.approx(figures["value0_gbs"]) and svg.read_text().startswith("<svg")
    assert main(["sweep", "chunk=2,8", "--preset", "ib", *SMALL, "--jobs", "1"]) == 0
    assert "band" in capsys.readouterr().out
    assert main(["sweep", "spines=4,8", "--preset", "ib", *SMALL, "--jobs", "1", "--csv", str(table)]) == 0
    assert [r["spines"] for r in csv.DictReader(table.open())] == ["4", "8"]
    assert "step 5, 1 seed (modelled)" in capsys.readouterr().out


def test_sweep_against_another_step(capsys, tmp_path):
    out = tmp_path / "sweep.csv"
    options = ["--preset", "roce", *SMALL, "--seeds", "3", "--jobs", "1", "--against", "0", "--csv", str(out)]
    assert main(["sweep", "channels=2,4", *options, "--json"]) == 0
    figures = one_object(capsys.readouterr().out)["figures"]
    rows = list(csv.DictReader(out.open()))
    preset = load("roce").changed(hosts=2, gpus_per_host=2)
    for i, row in enumerate(rows):
        least, middle, most = (figures[f"value{i}_gain{name}"] for name in ("_least", "", "_most"))
        assert 0 < least <= middle <= most and float(row["gain"]) == middle
        assert (float(row["gain_least"]), float(row["gain_most"])) == (least, most)
    work = sized_for(preset, "normal", "dispatch", tokens=24, channels=4, seed=1)
    gains = []
    for seed in range(3):
        cluster = preset.changed(hash_seed=preset.count("hash_seed") + seed)
        job = replace(work, seed=1 + seed)
        last, first = (measure(cluster, job, STEPS[n], seed=seed).logical_gbs for n in (5, 0))
        gains.append(last / first)
    names = ("value1_gain_least", "value1_gain", "value1_gain_most")
    assert sorted(gains) == pytest.approx([figures[name] for name in names])
    assert main(["sweep", "channels=2", *options]) == 0 and "gain over step 0" in capsys.readouterr().out


def test_sweep_changes_hosts_too():
    preset = load("ib").changed(hosts=2, gpus_per_host=2)
    work = sized_for(preset, "normal", "dispatch", tokens=8, channels=2)
    found = sweep(preset, work, STEPS[5], "hosts", ["2 count", "4 count"], jobs=1)
    assert found[1].results[0].port_bytes.shape[0] == 4


@pytest.mark.parametrize(
    "bad",
    [
        ["port_rate"],
        ["port_rate="],
        ["nothing=1"],
        ["port_rate=0Gb/s"],
        ["chunk=x"],
        ["port_rate=1ns"],
        ["chunk=8", "--seeds", "0"],
        ["chunk=8", "--csv", "/no/such/x.csv"],
    ],
)
def test_sweep_refuses(bad, capsys):
    assert main(["sweep", *bad, "--preset", "ib", *SMALL, "--jobs", "1"]) == 2
    assert "remedy" in capsys.readouterr().err
