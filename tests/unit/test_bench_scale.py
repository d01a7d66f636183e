"""`rdmakit bench scale` without a GPU: what it refuses, its plan and time, its truths, figures from times, pictures."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rdmakit.cli import bench_ep, bench_plot, bench_scale, bench_scale_truth, main
from rdmakit.cli.bench_record import record
from rdmakit.cli.bench_scale_plan import Case, busiest, cases, derived, flatness, rank_counts, routing, share
from rdmakit.cli.bench_scale_truth import NUMPY, combined, factors, ll_combined, ll_places, placed, scaled
from rdmakit.ep import reference
from rdmakit.ep.routing import uniform

ROOT = Path(__file__).resolve().parents[2]
NO_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")


# ---- refusals
@NO_TORCH
def test_without_gpus_the_program_is_refused_at_once():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/scale.py"), "--json"], capture_output=True, text=True,
                          timeout=60, env=os.environ | {"PYTHONPATH": ""}, cwd="/")  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: no torch")
    assert json.loads(done.stdout)["error"]["type"] == "NotAvailable"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "/nowhere/at/all.json"], "no such folder"),
        (["--plot", "/nowhere/at/all.svg"], "no such folder"),
        (["--limit-s", "3"], "too little time"),
        (["--limit-s", "nan"], "too little time"),
        (["--hidden", "100"], "multiple of the FP8 block"),
        (["--ranks", "3"], "no such number of ranks"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_would_fail_after_minutes_is_refused_before(options, said, capsys):
    assert main(["bench", "scale", *options]) == 2
    assert said in capsys.readouterr().err


# ---- plan, time, routings
def test_the_plan_has_every_size_and_routing():
    assert {(case.kind, case.tokens) for case in cases()} == {("normal", 4096), ("normal", 8192), ("ll", 128)}
    for kind, tokens in (("normal", 4096), ("normal", 8192), ("ll", 128)):
        assert {"uniform", "recorded"} <= {c.routing for c in cases() if (c.kind, c.tokens) == (kind, tokens)}
    assert {c.kind for c in cases() if c.routing == "fixed"} == {"normal", "ll"}
    assert [rank_counts(n) for n in (0, 1, 2, 7, 8, 16)] == [[], [1], [2, 1], [4, 2, 1], [8, 2, 4, 1], [8, 2, 4, 1]]
    assert all(case.experts % ranks == 0 for case in cases() for ranks in rank_counts(8))


def test_time_that_one_count_leaves_goes_to_the_next():
    assert share(0, 400, 4) == 100 and share(40, 400, 3) == 160 and share(500, 400, 2) == 500


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "ll"])
def test_fixed_routing_sends_and_receives_as_many_rows_at_any_number_of_ranks(ranks, kind, seed):
    case = Case(kind, 280, "fixed")
    parts = [routing(case, r, ranks, seed % 1000) for r in range(ranks)]
    goes = [placed_where(part.topk_idx, case.experts, ranks) for part in parts]
    rows = np.array([g.sum(0) for g in goes])
    if ranks > 1:
        away = rows - np.diag(np.diag(rows))
        assert (away.sum(0) == 280).all() and (away.sum(1) == 280).all()
        assert busiest(goes) == (280, 560)
    for part in parts:
        assert all(len(set(row)) == 8 for row in part.topk_idx) and np.allclose(part.topk_weights.sum(1), 1)


def placed_where(idx, experts, ranks):
    return np.stack([(idx // (experts // ranks) == d).any(1) for d in range(ranks)], 1)


def test_recorded_routing_is_skewed_and_of_all_ranks():
    case = Case("normal", 512, "recorded")
    parts = [routing(case, r, 4, 1).topk_idx for r in range(4)]
    assert case.experts == 64 and max(part.max() for part in parts) < 64
    rows = np.array([placed_where(part, 64, 4).sum(0) for part in parts])
    assert rows.sum(0).max() > 1.02 * rows.sum(0).mean() and len({part.tobytes() for part in parts}) == 4


# ---- truths
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_truth_of_combine_is_the_references_bit_for_bit(ranks, rng):
    experts, tokens = 8 * ranks, 33
    parts = [uniform(tokens, experts, 6, seed=int(rng.integers(1 << 30))).masked(0.2, seed=r) for r in range(ranks)]
    idx, weights = [p.topk_idx for p in parts], [p.topk_weights for p in parts]
    x = [rng.standard_normal((tokens, 256)).astype(ml_dtypes.bfloat16) for _ in range(ranks)]
    x[0][:2] = -0.0
    wants = [reference.dispatch(x, idx, weights, r, experts) for r in range(ranks)]
    by_rank, together = factors(ranks), np.stack(x)
    y = []
    for r, want in enumerate(wants):
        rows = together[want.handle.src_rank, want.handle.src_token]
        assert rows.tobytes() == np.asarray(want.recv_x).tobytes()
        y.append(scaled(rows, float(by_rank[r]), NUMPY))
        mine = placed(idx, weights, r, experts)
        assert np.array_equal(mine.recv_topk_idx, want.recv_topk_idx)
        assert np.array_equal(mine.recv_topk_weights, want.recv_topk_weights)
    for r in range(ranks):
        want, _ = reference.combine(y, [w.handle for w in wants], r, tokens)
        goes = placed_where(idx[r], experts, ranks).astype(np.float32)
        assert combined(x[r], goes, by_rank.tolist(), NUMPY).tobytes() == want.tobytes()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_truth_of_low_latency_is_the_references(ranks, rng):
    experts, tokens = 4 * ranks, 17
    parts = [uniform(tokens, experts, 3, seed=int(rng.integers(1 << 30))).masked(0.2, seed=r) for r in range(ranks)]
    idx, weights = [p.topk_idx for p in parts], [p.topk_weights for p in parts]
    x = [rng.standard_normal((tokens, 256)).astype(ml_dtypes.bfloat16) for _ in range(ranks)]
    together, by_expert, local = np.stack(x), factors(experts), experts // ranks
    wants, y = [], []
    for r in range(ranks):
        want = reference.low_latency_dispatch(x, idx, r, experts, tokens)
        shape, (expert, place, source, token) = ll_places(idx, r, experts, tokens)
        assert np.array_equal(shape.packed_recv_count, want.packed_recv_count)
        assert len(expert) == shape.packed_recv_count.sum()
        assert want.packed_recv_x[expert, place].tobytes() == together[source, token].tobytes()
        assert np.array_equal(want.packed_recv_src_info[expert, place], token)
        wants.append(want)
        y.append(scaled(want.packed_recv_x, by_expert[r * local : (r + 1) * local][:, None, None], NUMPY))
    for r in range(ranks):
        total, bound = ll_combined(x[r], idx[r], weights[r], by_expert)
        got = reference.low_latency_combine(y, wants, idx[r], weights[r], r, experts).astype(np.float64)
        assert (np.abs(got - total) <= bound).all()
        assert not (np.abs(got[::-1] - total) <= bound).all(), "rows of other tokens are no result"


# ---- figures
def row(operation="bf16_dispatch", ranks=2, us=200.0, wire=37_000_000, **other):
    kind = "ll" if operation.startswith("ll") else "normal"
    return {"ranks": ranks, "operation": operation, "kind": kind, "tokens": 4096 if kind == "normal" else 128,
            "routing": "uniform", "sms": 24, "us": us, "graph_us": 1.0, "call_us": 2.0, "wire": wire,
            "logical": 2 * wire, "right": True} | other  # fmt: skip


def test_rates_floors_and_goals():
    found = derived(row(), peer_copy_gbs=240.0)
    assert found["floor_us"] == pytest.approx(100) and found["of_floor"] == pytest.approx(50)
    assert found["wire_gbs"] == pytest.approx(185) and found["of_peer_copy"] == pytest.approx(100 * 185 / 240)
    assert found["goal_met"] is True and not derived(row(), peer_copy_gbs=250.0)["goal_met"]
    assert derived(row("ll_combine", us=45.1), 300.0)["goal_met"] is False
    assert derived(row("ll_dispatch", us=30), 300.0)["goal_met"] is True
    alone = derived(row(ranks=1, wire=0), 300.0)
    assert derived(row("ll_dispatch", ranks=1, wire=0), 300.0)["goal"] is None
    assert alone["floor_us"] is alone["of_peer_copy"] is alone["goal_met"] is None
    assert derived(row("nccl_a2a"), 300.0)["goal"] is None


def test_flat_is_within_ten_percent_of_two_ranks_everywhere():
    rows = [row(ranks=r, us=us, routing="fixed") for r, us in ((8, 109.0), (2, 100.0), (4, 95.0), (1, 10.0))]
    (line,) = flatness([*rows, row(ranks=8, us=900.0)])
    assert line["us"] == [[2, 100.0], [4, 95.0], [8, 109.0]] and line["ratio"] == 1.09 and line["flat"] is True
    rows[2]["us"] = 89.0
    assert flatness(rows)[0]["flat"] is False
    (two,) = flatness(rows[1:2])
    assert two["ratio"] is None and two["flat"] is None


def groups(wrong=False):
    found = []
    for ranks, slower in ((8, 1.05), (2, 1.0), (1, 0.3)):
        rows = []
        for way in ("uniform", "fixed", "recorded"):
            for sms in (24, 12):
                for name, us in (("fp8_dispatch", 150.0), ("bf16_dispatch", 250.0), ("bf16_combine", 220.0)):
                    wire = 0 if ranks == 1 else 30_000_000 if name.startswith("fp8") else 59_000_000
                    rows.append(row(name, ranks, us * slower * (1 + 0.3 * (sms == 12)), wire, routing=way, sms=sms))
            for name in ("ll_dispatch", "ll_combine"):
                rows.append(row(name, ranks, 22.0 * slower, 900_000 * (ranks > 1), routing=way, sms=132))
            for name in ("nccl_a2a", "nccl_a2a_permuted"):
                rows.append(row(name, ranks, 500.0, 59_000_000, routing=way, sms=None, graph_us=None, call_us=None))
        group = {"ranks": ranks, "device": "a GPU", "rows": rows, "wrong": [], "left_out": [], "failed": None,
                 "peer": {"peer_copy_gbs": 300.0, "sm_push_24sm_gbs": 340.0}, "wall_s": 30.0}  # fmt: skip
        found.append(group)
    if wrong:
        found[0]["rows"][0]["right"] = False
        found[0]["wrong"] = ["8 ranks, normal, 4096 tokens, uniform: fp8_dispatch/24: rows on rank 3"]
        found[1] |= {"failed": "ended after 100 s: its time was up", "left_out": ["2 ranks, ll, 128 tokens: ended"]}
    return found


def test_the_table_has_correctness_goals_rates_and_whether_it_is_flat():
    result = bench_scale.gathered(groups(), {"ranks": [8, 2, 1]})
    text = "\n".join(bench_scale.report(result))
    assert result["ok"] and text.startswith("measured on 8 x a GPU; results: all right")
    assert "right, goal met" in text and "right, goal missed" in text and "WRONG" not in text
    assert "2 ranks 250.0 µs, 8 ranks 262.5 µs: 1.05 of 2 ranks' time, flat within 10 %" in text
    assert result["figures"]["bf16_dispatch_4096_uniform_24sm_8r_us"] == 262.5
    assert result["figures"]["flat_bf16_combine_12sm_ratio"] == pytest.approx(1.05)
    assert "8 ranks, 30 s; copies to the next rank, all at once: cudaMemcpyAsync 300 GB/s, 24 SMs" in text


def test_what_is_wrong_or_left_out_is_said():
    result = bench_scale.gathered(groups(wrong=True), {"ranks": [8, 2, 1]})
    text = "\n".join(bench_scale.report(result))
    assert not result["ok"] and "rows on rank 3" in text and "2 ranks: ended after 100 s" in text
    assert "left out: 2 ranks, ll, 128 tokens: ended" in text and "WRONG" in text
    assert not bench_scale.gathered([], {})["ok"], "nothing measured is not right"


def test_record_and_pictures(tmp_path):
    result = bench_scale.gathered(groups(), {"ranks": [8, 2, 1]})
    kept = json.loads(json.dumps(record("bench scale", ["--limit-s=540"], result)))
    assert kept["command"] == "python -m rdmakit bench scale --limit-s=540" and kept["device"] == "8 x a GPU"
    assert {"commit", "date", "rates", "scaling", "figures"} <= set(kept)
    drawn = bench_plot.pictures(kept)
    assert set(drawn) == {"scaling", "rates"} and ": 1.05 of 2 ranks'" in drawn["scaling"].title
    assert "8 ranks: 49 to 85 % of the peer copy" in drawn["rates"].title
    written = [path for path, _ in bench_plot.save(drawn, tmp_path / "s.svg")]
    assert written == [tmp_path / "s-scaling.svg", tmp_path / "s-rates.svg"] and all(p.exists() for p in written)


def test_one_gpu_alone_is_drawn_without_a_floor():
    result = bench_scale.gathered(groups()[2:], {"ranks": [1]})
    drawn = bench_plot.pictures(result)
    assert set(drawn) == {"rates"} and "floor" not in str(drawn["rates"])


# ---- groups of processes
PROGRAM = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
ranks = int(sys.argv[sys.argv.index("--nproc-per-node") + 1])
out.write_text(json.dumps({"ranks": ranks, "rows": [], "wrong": [], "left_out": ["x"], "device": "a GPU", "peer": {}}))
print("what it says at last")
time.sleep(BUSY)
sys.exit(STATUS)
"""


def grouped(tmp_path, monkeypatch, busy, status, seconds):
    """A launcher that is Python itself: `-m torch.distributed.run` becomes a program of ours."""
    launched = tmp_path / "program.py"
    launched.write_text(PROGRAM.replace("BUSY", str(busy)).replace("STATUS", str(status)))
    start = subprocess.Popen

    def popen(command, **options):
        assert command[1:3] == ["-m", "torch.distributed.run"]
        return start([sys.executable, str(launched), *command[3:]], **options)

    monkeypatch.setattr(bench_scale.subprocess, "Popen", popen)
    now = time.time()
    return bench_scale._group(2, ["--seed=1"], tmp_path / "2.json", now, now + seconds)


def test_a_group_that_fails_says_how(tmp_path, monkeypatch):
    found = grouped(tmp_path, monkeypatch, 0, 3, 60)
    assert "exit status 3" in found["failed"] and "what it says at last" in found["failed"]


def test_of_ranks_that_fail_the_first_traceback_is_told():
    """Torchrun ends with tracebacks of its own, the others with what a rank's death did to them."""
    first = "[rank1]: Traceback (most recent call last)\n[rank1]:   File x\n[rank1]: rdmakit.errors.HeapFull: no room\n"
    also = "[rank0]: Traceback (most recent call last)\n[rank0]: RuntimeError: connection closed by peer\n"
    launcher = "E1130 12:00:00 failed (exitcode: 1)\nTraceback (most recent call last):\nChildFailedError\n"
    told = bench_ep.what_failed("warming up\n" + first + also + launcher)
    assert told == "Traceback (most recent call last)\n  File x\nrdmakit.errors.HeapFull: no room"
    plain = "Traceback (most recent call last):\n  File x\nValueError: 3\n"
    assert bench_ep.what_failed(plain + launcher) == plain.rstrip()
    long = bench_ep.what_failed("Traceback (most recent call last):\n" + "  File x\n" * 1000 + "ValueError: the end")
    assert len(long) < 2000 and long.endswith("ValueError: the end")


def test_a_group_whose_time_is_up_is_ended_and_what_it_had_is_kept(tmp_path, monkeypatch):
    found = grouped(tmp_path, monkeypatch, 100, 0, 4)
    assert "its time was up" in found["failed"] and found["left_out"] == ["x"] and found["wall_s"] < 30


def test_a_group_that_ends_well_is_as_it_was(tmp_path, monkeypatch):
    assert grouped(tmp_path, monkeypatch, 0, 0, 60)["failed"] is None


def test_counts_for_which_no_time_is_left_are_told(monkeypatch):
    monkeypatch.setattr(bench_scale, "_group", lambda *args: pytest.fail("started without time"))
    found = bench_scale.run([2, 1], [], 30.0, time.time() - 25)
    assert [g["ranks"] for g in found] == [2, 1] and all(len(g["left_out"]) == len(cases()) for g in found)


def test_each_count_has_its_share(monkeypatch):
    given = []

    def group(ranks, options, out, until, end):
        given.append((ranks, until, end))
        return {"ranks": ranks}

    monkeypatch.setattr(bench_scale, "_group", group)
    begin = time.time()
    bench_scale.run([8, 2, 4, 1], [], 540.0, begin)
    assert [ranks for ranks, _, _ in given] == [8, 2, 4, 1]
    assert given[0][1] - begin == pytest.approx((540 - 12 - 20) / 4, abs=2)
    assert given[-1][1] - begin == pytest.approx(540 - 12 - 20, abs=2) and given[-1][2] - begin == pytest.approx(528)


def test_parser_takes_what_the_program_does():
    which = argparse.ArgumentParser().add_subparsers()
    bench_scale.add_parser(which)
    args = which.choices["scale"].parse_args(["--ranks", "2", "--ranks", "1", "--plot", "a.svg", "--out", "a.json"])
    assert args.ranks == [2, 1] and args.limit_s == 540 and bench_scale_truth.factors(2).tolist() == [1.0, 1.5]
