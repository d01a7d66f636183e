"""`rdmakit bench`: what it says of GPUs that are not there, records, tables. What kernels do is in tests/any."""

import importlib.util
import json

import numpy as np
import pytest

from rdmakit.cli import bench_ep, bench_gpu, bench_record, main
from rdmakit.cli.bench_a2a import shares

NO_CUPY = pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
NO_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")


@NO_CUPY
@pytest.mark.parametrize("what", ["queue", "put", "primitives"])
def test_without_a_gpu_it_is_refused_with_what_to_install(what, capsys):
    assert main(["bench", what, "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not found["ok"] and found["error"]["type"] == "NotAvailable" and "rdmakit[gpu]" in found["error"]["remedy"]
    assert err.startswith("error: no CuPy")


@NO_TORCH
def test_ep_without_torch_is_refused_before_anything_is_launched(capsys, monkeypatch):
    monkeypatch.setattr(bench_ep.subprocess, "run", None)
    assert main(["bench", "ep"]) == 2
    assert capsys.readouterr().err.startswith("error: no torch")


@pytest.mark.parametrize(
    "options",
    [
        ["put", "--begin", "9"],
        ["put", "--begin", "4096", "--end", "8"],
        ["put", "--factor", "1"],
        ["primitives", "--rounds", "0"],
        ["primitives", "--repeats", "-1"],
        ["ep", "--processes", "0"],
    ],
    ids=" ".join,
)
def test_sizes_that_cannot_be_are_status_2(options, capsys):
    assert main(["bench", *options]) == 2
    assert "rule: " in capsys.readouterr().err


# ---- records
def finished(tmp_path, result, *options):
    path = tmp_path / "record.json"
    args = bench_gpu.argparse.Namespace(json="--json" in options, out=path)
    status = bench_record.finish(args, "bench put", ["--begin=8"], result, lambda: ["a table"])
    return status, json.loads(path.read_text())


def test_a_record_says_where_it_came_from(tmp_path, capsys):
    result = {"ok": True, "device": "a GPU", "figures": {"put_8_us": 3.0}, "config": {"begin": 8}, "lines": ["x"]}
    status, kept = finished(tmp_path, result)
    assert status == 0 and capsys.readouterr().out == "a table\n"
    assert kept["command"] == "python -m rdmakit bench put --begin=8" and kept["measured"] is True
    assert kept["device"] == "a GPU" and kept["figures"] == {"put_8_us": 3.0} and "lines" not in kept
    assert {"date", "commit"} <= set(kept)


def test_a_wrong_result_is_status_1_and_on_record(tmp_path, capsys):
    status, kept = finished(tmp_path, {"ok": False, "figures": {}, "config": {}}, "--json")
    assert status == 1 and json.loads(capsys.readouterr().out) == kept and not kept["ok"]


def test_a_record_that_cannot_be_written_is_refused(tmp_path):
    args = bench_gpu.argparse.Namespace(json=True, out=tmp_path / "nowhere" / "record.json")
    with pytest.raises(bench_record.BadArgument, match="cannot be written"):
        bench_record.finish(args, "bench put", [], {"ok": True}, list)


# ---- tables
def ep_result(wrong=()):
    names = ["fp8_dispatch", "ll_combine", "nccl_a2a"]
    figures = {f"{name}_us": 100.0 for name in [*names, "nccl_ll_a2a"]} | {"peer_copy_gbs": 300.0}
    for name in ("nccl_a2a", "nccl_ll_a2a"):
        figures |= {f"{name}_{part}_us": 50.0 for part in ("before", "after", "permuted")}
    return {
        "ok": not wrong,
        "wrong": list(wrong),
        "device": "a GPU",
        "operations": names,
        "sms": {"fp8_dispatch": 24, "ll_combine": 132, "nccl_a2a": None},
        "right": {name: not any(text.startswith(name) for text in wrong) for name in names},
        "figures": figures,
        "floors": {name: {"us": 80.0, "wire": 29_600_000, "logical": 59_200_000} for name in names},
        "config": dict(bench_ep.USUAL),
    }


def test_ep_table_has_floor_rate_sms_and_correctness():
    lines = bench_ep.report(ep_result(["ll_combine: sums on rank 1"]))
    assert lines[0].startswith("measured on 2 x a GPU") and "WRONG: ll_combine: sums on rank 1" in lines[1]
    row = next(line for line in lines if line.startswith("fp8_dispatch")).split()
    assert " ".join(row) == "fp8_dispatch 24 100.0 – – 80.0 80 296.0 592.0 105 right, goal met"
    assert next(line for line in lines if line.startswith("ll_combine")).endswith("WRONG")
    assert "permutation before it 50 µs, behind it 50 µs" in "\n".join(lines)


def test_ep_table_knows_goals_of_the_usual_shape_alone():
    result = ep_result()
    result["config"]["tokens"] = 64
    assert "goal met" not in "\n".join(bench_ep.report(result))


# ---- the exchange that NCCL is given
def test_shares_bring_every_row_home_in_order(rng):
    """A model of all-to-all over random routings, some with ranks that send nothing."""
    for _ in range(20):
        ranks = int(rng.integers(1, 5))
        goes = [rng.random((int(rng.integers(0, 9)), ranks)) < rng.random() for _ in range(ranks)]
        x = [rng.integers(0, 1 << 30, len(g)) + (r << 32) for r, g in enumerate(goes)]
        plans = [shares(goes, r) for r in range(ranks)]
        assert len({share for share, _, _ in plans}) == 1
        share = plans[0][0]
        sent = [
            np.append(x[r], -1)[np.minimum(send, len(x[r]))].reshape(ranks, share)
            for r, (_, send, _) in enumerate(plans)
        ]
        for rank, (_, _, keep) in enumerate(plans):
            came = np.concatenate([sent[r][rank] for r in range(ranks)])
            assert np.array_equal(came[keep], np.concatenate([x[r][goes[r][:, rank]] for r in range(ranks)]))
