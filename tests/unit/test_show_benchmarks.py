"""The pictures of benchmarks, held to what every picture is; and what `bench plot` makes of a record."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_show import few, proven, words

from rdmakit import show
from rdmakit.cli import main
from rdmakit.cli.bench_plot import pictures

ROOT = Path(__file__).resolve().parents[2]
EP = ROOT / "benchmarks/results/2026-11-25-h100x2-nvlink.json"
values = st.floats(0, 1e7, allow_nan=False)


@few
@given(st.lists(st.tuples(words, st.lists(st.tuples(words, st.none() | values), max_size=4)), max_size=6), words)
def test_group_bars(groups, note):
    proven(lambda: show.group_bars(groups, "µs", note=note))


def test_group_bars_refuses_what_no_bar_can_show():
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite value"):
            show.group_bars([("dispatch", [("measured", value)])])


@few
@given(
    st.dictionaries(words, st.lists(st.tuples(st.integers(1, 1 << 20), values), min_size=1, max_size=9), min_size=1,
                    max_size=8),
    st.booleans(),
    words,
)  # fmt: skip
def test_line_chart(lines, log, note):
    proven(lambda: show.line_chart(lines, "SMs", "GB/s", log=log, note=note))


def test_line_chart_refuses_what_cannot_be_drawn():
    for point in ((float("nan"), 1), (1, -1), (1, float("inf")), (0, 1)):
        with pytest.raises(ValueError, match="point"):
            show.line_chart({"a": [point]}, "x", "y", log=True)
    with pytest.raises(ValueError, match="no points"):
        show.line_chart({"a": []}, "x", "y")


def primitives_record():
    return {
        "measured": True,
        "device": "2 x a GPU",
        "copies": [
            {"way": way, "how": how, "sms": sms, "gbs": rate * sms}
            for way in ("local", "push", "pull", "push_both")
            for how, rate in (("vector", 40.0), ("bulk", 49.0))
            for sms in (1, 8, 24)
        ],
        "costs": [
            {"name": "empty", "where": "local", "ns": 3.0},
            {"name": "fence_sys", "where": "local", "ns": 500.0},
            {"name": "fence_sys_peer_stores", "where": "peer", "ns": 900.0},
            {"name": "fetch_add_sys_pinned", "where": "pinned", "ns": 1400.0},
            {"name": "flag_round_trip_peer", "where": "peer", "ns": 1250.0},
        ],
        "sizes": [{"bytes": n, "us": 3.0 + n / 1e4, "row_us": 1.0} for n in (8, 4096, 1 << 20)],
    }


def test_a_record_of_primitives_makes_three_pictures():
    drawn = pictures(primitives_record())
    assert set(drawn) == {"copies", "costs", "sizes"}
    for name in drawn:
        proven(lambda name=name: pictures(primitives_record())[name])
    assert drawn["copies"].title == "SMs copy at most 1176 GB/s: bulk, here, 24 SMs"
    assert "fence_sys behind stores" in str(drawn["costs"]) and "empty" not in str(drawn["costs"])


def test_the_record_of_ep_is_drawn_beside_floor_and_peer(tmp_path, capsys):
    out = tmp_path / "ep.svg"
    assert main(["bench", "plot", str(EP), "-o", str(out)]) == 0
    assert out.read_text().startswith("<svg") and "prefers-color-scheme" in out.read_text()
    assert capsys.readouterr().out.startswith(f"{out}: Dispatch and combine take")
    text = str(pictures(json.loads(EP.read_text()))["operations"])
    assert "floor: wire bytes at 370 GB/s" in text and "DeepEP" in text
    other = json.loads(EP.read_text())
    other["config"]["tokens"] = 8
    assert "DeepEP" not in str(pictures(other)["operations"]), "a peer's figures are of one shape"


def test_several_pictures_have_names_of_their_own(tmp_path, capsys):
    record = tmp_path / "r.json"
    record.write_text(json.dumps(primitives_record()))
    assert main(["bench", "plot", str(record), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] and {name: one["path"] for name, one in said["pictures"].items()} == {
        name: str(tmp_path / f"r-{name}.svg") for name in ("copies", "costs", "sizes")
    }
    assert {path.name for path in tmp_path.glob("*.svg")} == {"r-copies.svg", "r-costs.svg", "r-sizes.svg"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "nothing in this record"),
        ('{"figures": {}}', "nothing in this record"),
        ('{"copies": [{"how": "bulk"}]}', "'copies' cannot be drawn"),
        ('{"operations": ["a"], "figures": {}, "floors": {}, "config": {}}', "'operations' cannot be drawn"),
        ('{"sizes": [{"bytes": 0, "us": 1, "row_us": 1}]}', "'sizes' cannot be drawn"),
    ],
)
def test_records_that_are_none_are_refused(tmp_path, capsys, text, said):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    assert main(["bench", "plot", str(path)]) == 2
    assert said in capsys.readouterr().err
