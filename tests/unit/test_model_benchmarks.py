"""The model's benchmarks: what they make of runs, and that the records which pages quote are what they say."""

import json
import runpy
from pathlib import Path

import pytest

from rdmakit import show
from rdmakit.model import load
from rdmakit.model.puts import BEST

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def claims():
    return runpy.run_path(str(ROOT / "benchmarks" / "claims.py"))


@pytest.fixture
def cost():
    return runpy.run_path(str(ROOT / "benchmarks" / "cost.py"))


@pytest.fixture
def puts():
    return runpy.run_path(str(ROOT / "benchmarks" / "puts.py"))


@pytest.fixture
def plans():
    return runpy.run_path(str(ROOT / "benchmarks" / "plans.py"))


def row(cluster, parameter, value, gains):
    return {"cluster": cluster, "parameter": parameter, "value": value, "gains": gains}


def test_claims_are_medians_of_bands(claims):
    rows = [
        row("roce", "chunk", "4", [2.1, 1.9, 2.4]),
        row("roce", "chunk", "8", [1.8, 1.7, 3.0]),
        row("ib", "tokens", "512", [1.3, 1.2, 1.4]),
    ]
    found = claims["figures_of"](rows)
    assert found["roce_gain_median"] == pytest.approx(1.95) and found["roce_rows_reaching"] == 0.5
    assert (found["roce_gain_least"], found["roce_gain_most"], found["roce_runs"]) == (1.7, 3.0, 6)
    assert found["ib_rows_reaching"] == 1.0
    result = {"rows": rows, "figures": found, "date": "today", "commit": "x", "config": {"seeds": 3}}
    text = str(claims["picture"](result, "roce"))
    assert "the claim" in text and "1.7" in text and "1.95 in the median" in text


def test_an_exponent(cost):
    rows = [{"messages": n, "s": 5.0 * n**1.5} for n in (10, 100, 1000)]
    assert cost["exponent"]([{"messages": 0, "s": 1.0}, *rows], "s") == pytest.approx(1.5)


@pytest.mark.parametrize("rows", [[("a", 2.0, 1.0, 3.0)], [("a", -1.0, 0.0, 1.0)], [], [("a", 1.0, 1.0, float("inf"))]])
def test_bands_that_are_none(rows):
    with pytest.raises(ValueError):
        show.band_rows(rows)


def test_all_splits_and_a_table(plans):
    found = list(plans["splits"](tuple(range(6)), 2))
    assert len(set(found)) == len(found) == 15 and all(sorted(sum(split, ())) == list(range(6)) for split in found)
    shares = plans["share_above"](load("h800-cx7-roce-4plane").for_ranks(16), 8)  # 8 flows, 2 a port
    assert shares["splits"] == 105 and shares["least"] <= shares["rule"] and shares["least"] <= shares["median"]
    row = plans["row"](load("roce"), 4)
    assert 1 <= row["least"] <= min(row["known"], row["planned"]) and row["ports_counted"] == 1
    assert plans["table"]([row]).splitlines()[-1].startswith("| `h800-cx7-roce-hash` | 32 | 4 | ")


def test_records_are_what_they_say(claims, cost, plans, puts):
    kept = sorted(RESULTS.glob("*-model-*.json"))
    assert kept
    for path in kept:
        record = json.loads(path.read_text())
        assert record["commit"] and record["command"].startswith("python benchmarks/")
        if path.stem.endswith("claims"):
            assert record["figures"] == pytest.approx(claims["figures_of"](record["rows"]))
            for each in record["rows"]:
                pairs = zip(each["step5_gbs"], each["step0_gbs"], strict=True)
                assert each["gains"] == pytest.approx([last / first for last, first in pairs])
        elif path.stem.endswith("puts"):
            assert puts["figures_of"](record["rows"]) == pytest.approx(record["figures"])
            assert puts["best_of"](record["rows"]) == BEST  # what the model takes is what was found
            page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
            told = [line for line in puts["table"](record["rows"]).splitlines() if "`ib`" in line]
            assert told and all(line in page for line in told)
        elif path.stem.endswith("plans"):
            assert plans["figures_of"](record["rows"]).items() <= record["figures"].items()
            assert record["figures"]["spine_max_over_mean"] <= 1.25
            for each in record["rows"]:
                assert each["least"] <= min(each["planned"], each["known"]) and each["ports_known"] <= 1.15
        else:
            for what, rows in (
                ("cpu_exponent", "cpu_seconds"),
                ("run_cpu_exponent", "run_cpu_seconds"),
                ("memory_exponent", "memory_bytes"),
            ):
                assert record["figures"][what] == pytest.approx(cost["exponent"](record["rows"], rows))
                assert record["figures"][what] <= 1 + cost["SLACK"]
            for each in record["rows"]:
                assert each["setup_cpu_seconds"] + each["run_cpu_seconds"] == pytest.approx(each["cpu_seconds"])
            largest = record["rows"][-1]
            assert largest["cpu_seconds"] <= 120 and largest["memory_bytes"] <= 8 << 30  # EP256's own goal
            assert [r["ranks"] for r in record["rows"]] == [8, 16, 32, 64, 128, 256]
