"""Every picture of `rdmakit.show` is well-formed, keeps its text inside and apart, escapes what it is given,
and is the same each time, for examples a reader would see and for whatever hypothesis thinks up."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdmakit import show
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.show.palette import SERIES, blend, ink_on, luminance
from rdmakit.show.statemachine import STATES, allowed
from rdmakit.show.svg import element, escape
from rdmakit.show.text import BOLD, clip, shrink, text_width, wrap
from rdmakit.show.units import digits, memory, quantity

SVG = "{http://www.w3.org/2000/svg}"
few = settings(max_examples=15, deadline=None)

# Anything a name may hold: markup, control characters, wide and combining letters, nothing at all.
words = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["<b>&\"'</b>", "mlx5_0 port 1", "W" * 60, "\x00\x1b[31m", "漢字かな", "e\u0301"]),
)
times = st.floats(0, 1e7, allow_nan=False)


def _texts(root: ElementTree.Element) -> list[tuple[float, float, float, float, str]]:
    """(left, top, right, bottom, text) of every text, by the estimate of `text_width`, in the picture's own
    coordinates."""
    found = []

    def walk(node: ElementTree.Element, down: float) -> None:
        shift = re.fullmatch(r"translate\(0,([0-9.]+)\)", node.get("transform", ""))
        down += float(shift[1]) if shift else 0.0
        if node.tag == f"{SVG}text":
            size, x, y = float(node.get("font-size")), float(node.get("x")), float(node.get("y")) + down
            tip = node.find(f"{SVG}title")
            text = (node.text or "") + ("" if tip is None else tip.tail or "")
            width = text_width(text, size, mono="mono" in node.get("font-family", ""))
            width *= BOLD if node.get("font-weight") == "bold" else 1
            left = x - {"start": 0, "middle": 0.5, "end": 1}[node.get("text-anchor", "start")] * width
            found.append((left, y - 0.76 * size, left + width, y + 0.2 * size, text))
        for child in node:
            walk(child, down)

    walk(root, 0.0)
    return found


def proven(make: Callable[[], show.Figure]) -> show.Figure:
    """Make the picture twice and hold it to all that a picture promises."""
    figure = make()
    assert make().svg == figure.svg, "the same data must make the same picture"
    assert figure.title and str(figure).startswith(figure.title)
    ElementTree.fromstring(figure._repr_html_())
    root = ElementTree.fromstring(figure._repr_svg_())
    width, height = float(root.get("width")), float(root.get("height"))
    assert 0 < width <= 900 and root.get("viewBox") == f"0 0 {width:g} {height:g}"
    texts = _texts(root)
    for left, top, right, bottom, text in texts:
        assert left >= -0.5 and right <= width + 0.5 and top >= -0.5 and bottom <= height + 0.5, (
            f"{text!r} leaves the picture"
        )
    left, top, right, bottom = np.array([box[:4] for box in texts]).T
    across = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    down = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    for i, j in np.argwhere(np.triu((across > 1) & (down > 1), 1)):
        raise AssertionError(f"{texts[i][4]!r} lies upon {texts[j][4]!r}")
    assert "prefers-color-scheme" in figure._repr_svg_() and "<style" not in figure._repr_html_()
    return figure


@few
@given(st.lists(st.tuples(st.integers(1, 20), words, words), min_size=1, max_size=12), st.booleans())
def test_byte_grid(parts, with_bytes):
    fields, offset = [], 0
    for size, name, value in parts:
        fields.append((offset, size, name, value))
        offset += size
    size = -(-offset // 16) * 16
    data = bytes(range(size % 256)) + bytes(size - size % 256) if with_bytes else None
    proven(lambda: show.byte_grid(fields, size, data=data, golden=bytes(size) if with_bytes else None))


def test_byte_grid_marks_the_fields_that_differ():
    figure = show.byte_grid(
        [(0, 8, "a.x", 1), (8, 8, "a.y", 2)], 16, data=bytes(16), golden=bytes(15) + b"\1"
    )
    assert figure.title == "1 of 2 fields differ from the golden bytes"
    assert [line.endswith("✗ differs") for line in str(figure).splitlines()[1:3]] == [False, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([(0, 4, "a", 0), (2, 4, "b", 0)], "'b' at byte 2 overlaps 'a'"),
        ([(60, 8, "a", 0)], "outside the 64 bytes"),
        ([(0, 0, "a", 0)], "outside"),
    ],
)
def test_byte_grid_refuses_fields_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        show.byte_grid(fields)


@few
@given(
    st.lists(
        st.one_of(st.sampled_from(["free", "posted", "done"]), st.tuples(words, words)),
        min_size=1,
        max_size=300,
    ),
    st.dictionaries(words, st.integers(0, 2**64), max_size=5),
)
def test_queue_ring(slots, indices):
    proven(lambda: show.queue_ring(slots, indices))


def test_queue_ring_wraps_its_indices():
    assert "producer = 65537 → slot 1" in str(show.queue_ring(["free"] * 8, {"producer": 65537}))


@pytest.mark.parametrize("count", [1, 16, 17, 64, 65, 65536])
def test_queue_ring_of_any_size(count):
    figure = proven(lambda: show.queue_ring(count, {"head": count - 1, "tail": 0}))
    assert figure.height < 700


@few
@given(
    st.sampled_from(STATES),
    st.lists(st.sampled_from(STATES), max_size=6),
    st.tuples(st.sampled_from(STATES), st.sampled_from(STATES)),
)
def test_qp_states(current, history, refused):
    proven(lambda: show.qp_states(current, history=history, refused=refused))


def test_software_may_take_these_steps_only():
    assert {(a, b) for a in STATES for b in STATES if allowed(a, b) and b not in ("RESET", "ERR")} == {
        ("RESET", "INIT"),
        ("INIT", "INIT"),
        ("INIT", "RTR"),
        ("RTR", "RTS"),
        ("RTS", "RTS"),
        ("RTS", "SQD"),
        ("SQD", "SQD"),
        ("SQD", "RTS"),
        ("SQE", "RTS"),
    }


def test_qp_states_refuses_an_unknown_state():
    with pytest.raises(ValueError, match="'RTX' is no QP state"):
        show.qp_states("RTX")


_lanes = ["GPU", "NIC <0>", "peer"]
_events = st.lists(st.tuples(st.sampled_from(_lanes), times, st.one_of(st.none(), times), words), max_size=15)
_messages = st.lists(st.tuples(st.permutations(_lanes), times, times, words), max_size=10)


@few
@given(_events, _messages)
def test_time_lanes(events, messages):
    events = [(lane, min(a, b or a), None if b is None else max(a, b), name) for lane, a, b, name in events]
    flights = [(lanes[0], min(a, b), lanes[1], max(a, b), name) for lanes, a, b, name in messages]
    figure = show.time_lanes(_lanes, events, flights)
    root = ElementTree.fromstring(figure.svg)
    assert all(left >= -0.5 and right <= 900.5 for left, _, right, _, _ in _texts(root))
    # Numbered discs may have to lie upon a name in a crowd; without arrows nothing may lie upon anything.
    proven(lambda: show.time_lanes(_lanes, events))


@few
@given(
    _messages,
    st.lists(
        st.tuples(st.sampled_from(_lanes), times, words, st.sampled_from(["", "good", "bad"])), max_size=8
    ),
)
def test_message_chart(messages, notes):
    flights = [
        (lanes[0], min(a, b), lanes[1], None if a == b else max(a, b), name) for lanes, a, b, name in messages
    ]
    proven(lambda: show.message_chart(_lanes, flights, notes))


def test_message_chart_finds_what_overtakes_and_what_is_lost():
    figure = show.message_chart(
        "AB", [("A", 0, "B", 9, "data"), ("A", 1, "B", 5, "flag"), ("A", 2, "B", None, "ack")]
    )
    assert figure.title == "1 of 3 messages overtakes an earlier one; 1 never arrives"


@pytest.mark.parametrize("draw", [show.time_lanes, show.message_chart])
def test_lanes_are_checked(draw):
    with pytest.raises(ValueError, match="'B' is not among the lanes"):
        draw(["A"], [("B", 0, 1, "x")] if draw is show.time_lanes else [("B", 0, "A", 1, "x")])


@few
@given(
    st.lists(st.tuples(words, st.floats(0, 1e15), words), min_size=1, max_size=20),
    st.sampled_from(["B", "ns", "Gb/s", "tokens"]),
    st.one_of(st.none(), st.tuples(words, st.floats(0, 1e15))),
)
def test_port_bars(items, unit, reference):
    proven(lambda: show.port_bars(items, unit, reference=reference))


def test_port_bars_refuses_what_no_bar_can_show():
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite value of at least 0"):
            show.port_bars([("a", value)])


def _machine(gpus: int, nics: int, ports: int, name: str, down: bool) -> dict:
    return {
        "name": name,
        "gpus": [f"GPU {i}" for i in range(gpus)],
        "nics": [
            {
                "name": f"mlx5_{i}",
                "ports": [
                    {"port": p + 1, "state": "DOWN" if down else "ACTIVE", "rate": "400 Gb/s"}
                    for p in range(ports)
                ],
            }
            for i in range(nics)
        ],
        "links": [(f"GPU {i}", f"mlx5_{i % nics}", "PIX" if i % 2 else "SYS") for i in range(gpus) if nics],
    }


@few
@given(
    st.lists(
        st.builds(_machine, st.integers(0, 8), st.integers(0, 8), st.integers(0, 2), words, st.booleans()),
        max_size=6,
    ),
    words,
)
def test_host_map(hosts, fabric):
    proven(lambda: show.host_map(hosts, fabric=fabric))


def test_host_map_names_the_port_that_is_down():
    figure = show.host_map([_machine(2, 2, 2, "h0", False), _machine(1, 1, 1, "h1", True)])
    assert figure.title == "1 of 5 ports down: h1 mlx5_0 port 1"
    with pytest.raises(ValueError, match="names no GPU and NIC"):
        show.host_map([{"name": "h", "gpus": ["GPU 0"], "links": [("GPU 1", "mlx5_0")]}])


_address = st.integers(0, 2**64 - 1)
_length = st.one_of(st.integers(0, 256), st.integers(0, 2**40))


@few
@given(
    st.lists(st.tuples(words, _address, _length, _address, _address, words), min_size=1, max_size=8),
    st.lists(st.tuples(words, _address, _length, st.booleans(), words), max_size=5),
)
def test_address_map(regions, accesses):
    proven(lambda: show.address_map(regions, accesses))


@few
@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32), words)
def test_heat_map(count, width, seed, word):
    values = np.random.default_rng(seed).integers(0, 10**6, (count, width))
    proven(lambda: show.heat_map(values, unit=word, down=word))


def test_heat_map_refuses_what_has_no_shape():
    for values in ([], [[]], [[1], [1, 2]], np.zeros((65, 1)), [[float("nan")]]):
        with pytest.raises(ValueError, match="heat map needs"):
            show.heat_map(values)


@few
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.one_of(words, st.integers(), st.floats())), max_size=6
    ),
    words,
)
def test_data_table_is_well_formed(rows, title):
    table = show.data_table(rows, title=title)
    ElementTree.fromstring(table._repr_html_())
    assert table._repr_html_() == show.data_table(rows, title=title)._repr_html_()


def test_data_table_takes_structured_arrays():
    array = np.array([(7, 1.5), (8, 2.0)], dtype=[("qp", "u4"), ("seconds", "f8")])
    assert str(show.data_table(array, title="QPs")) == "QPs\nqp  seconds\n7   1.5\n8   2"
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        show.data_table([[1, 2], [3]])


def test_data_table_escapes():
    assert "<script>" not in show.data_table([{"<script>": "<script>"}], title="<script>")._repr_html_()


def test_data_table_breaks_a_long_name_behind_its_underscores_only():
    name = "doca_gpu_dev_verbs_reserve_wq_slots"
    html = show.data_table([{"name": f"{name} <a_b>", "hex": "0123456789abcdef" * 2}], title="t")._repr_html_()
    assert name.replace("_", "_<wbr/>") + " &lt;a_b&gt;" in html
    cells = ElementTree.fromstring(html).findall(".//td")
    assert "".join(cells[0].itertext()) == f"{name} <a_b>"
    assert "overflow-wrap:normal" in cells[0].get("style", "")
    assert "overflow-wrap:normal" not in cells[1].get("style", "")


@few
@given(words, st.floats(20, 400), st.floats(8, 20), st.booleans())
def test_text_keeps_to_its_limit(text, limit, size, mono):
    assert text_width(clip(text, limit, size, mono), size, mono) <= limit + 1e-6
    shown, used = shrink(text, limit, size, 8, mono)
    assert text_width(shown, used, mono) <= limit + 1e-6 and used <= size
    lines = wrap(text, limit, size, most=3, mono=mono)
    assert 1 <= len(lines) <= 3
    assert all(text_width(line, size, mono) <= limit + 1e-6 or len(line) == 1 for line in lines)


@few
@given(st.text())
def test_escape_makes_any_text_well_formed(text):
    root = ElementTree.fromstring(element("g", text, name=text))
    assert root.tag == "g" and escape(escape(text)) == escape(text)


def test_inks_can_be_read_on_every_colour():
    for colour in (*SERIES, *(blend(i / 10) for i in range(11))):
        light, dark = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_numbers_read_well():
    assert [digits(v) for v in (0, 0.12345, 1024.5, 999_999, 1e9)] == [
        "0",
        "0.123",
        "1024",
        "999999",
        "1e+09",
    ]
    assert [quantity(1.5e9, "B/s"), quantity(2e-6, "s"), quantity(0, "B"), quantity(3, "Gb/s")] == [
        "1.5 GB/s",
        "2 µs",
        "0 B",
        "3 Gb/s",
    ]
    assert [memory(0), memory(1023), memory(1 << 40), memory(1536)] == ["0 B", "1023 B", "1 TiB", "1.5 KiB"]


def test_a_figure_saves_itself(tmp_path):
    show.port_bars([("a", 1)]).save(tmp_path / "a.svg")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag == f"{SVG}svg"


def test_a_figure_is_saved_as_its_name_ends(tmp_path, monkeypatch):
    figure = show.port_bars([("a", 1)])
    for name in ("a.pdf", "a", "a.svg.gz"):
        with pytest.raises(BadArgument, match="no format") as caught:
            figure.save(tmp_path / name)
        assert ".png" in caught.value.rule and caught.value.remedy.endswith(".svg")
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # not installed
    with pytest.raises(NotAvailable, match="draws PNG") as missing:
        figure.save(tmp_path / "a.png")
    assert "rdmakit[png]" in missing.value.remedy and not list(tmp_path.iterdir())


def test_without_a_font_no_png_is_drawn(monkeypatch):
    class Blank:
        @staticmethod
        def svg_to_bytes(**_):
            return b"white"

    monkeypatch.setitem(sys.modules, "resvg_py", Blank)
    monkeypatch.setattr("rdmakit.show.raster.find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match="no font"):
        show.port_bars([("a", 1)]).save("a.png")


def test_a_png_is_the_picture(tmp_path):
    """Its size, white behind it, ink of the bars and of the words on it."""
    pytest.importorskip("resvg_py", reason="pip install 'rdmakit[png]'")
    image = pytest.importorskip("PIL.Image")
    figure = show.port_bars([("a", 1), ("b", 3)], title="as PNG")
    figure.save(tmp_path / "a.PNG")
    drawn = np.asarray(image.open(tmp_path / "a.PNG").convert("RGB")).astype(int)
    assert drawn.shape[:2] == (2 * figure.height, 2 * figure.width) and (drawn[0] == 255).all()
    dark, colour = drawn.max(axis=2) < 100, np.ptp(drawn, axis=2) > 80
    assert 200 < dark.sum() < drawn.size / 30 and colour.sum() > 1000


@few
@given(st.lists(st.tuples(words, words, words, st.floats(0, 1e12)), min_size=1, max_size=20), st.integers(0, 2))
def test_routes(routes, colour_by):
    proven(lambda: show.route_map(["peer", "port", "spine"], routes, colour_by=colour_by))


@pytest.mark.parametrize(
    "routes",
    [[], [("a", "b", -1)], [("a", "b", float("nan"))], [("a", 1)], [(f"a{i}", "b", 1) for i in range(65)]],
)
def test_routes_that_cannot_be_drawn(routes):
    with pytest.raises(ValueError):
        show.route_map(["peer", "port"], routes)


@few
@given(
    st.lists(st.tuples(words, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8),
    st.lists(st.tuples(words, st.floats(0, 1e6)), max_size=3),
    st.booleans(),
)
def test_waterfall(steps, marks, banded):
    rows = [(name, value, *sorted((low, high))) if banded else (name, value) for name, value, low, high in steps]
    proven(lambda: show.waterfall(rows, "GB/s", marks=marks))


@pytest.mark.parametrize("steps", [[], [("a", -1)], [("a", float("inf"))]])
def test_waterfalls_that_cannot_be_drawn(steps):
    with pytest.raises(ValueError):
        show.waterfall(steps, "GB/s")
