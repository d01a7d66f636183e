"""Preset files: what is shipped is whole and sourced; whatever is wrong with one names its line."""

import re
from pathlib import Path

import numpy as np
import pytest

from rdmakit.errors import BadArgument, CorruptFile, RdmakitError
from rdmakit.model import load, parse, shipped
from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import MARKS
from rdmakit.model.units import DIMENSIONS, dimension_of, in_base, in_unit

BASE = "title: mine\ninclude: h800-cx7-ib\n"
ROCE = "include: h800-cx7-roce-affinity\n"


@pytest.mark.parametrize("name", shipped())
def test_shipped_presets_are_whole_and_sourced(name):
    preset = load(name)
    assert set(preset.settings) == set(PARAMETERS) and preset.title
    for setting in preset.settings.values():
        assert setting.mark in MARKS and len(setting.source) > 3, setting
        assert re.fullmatch(r"[\w-]+\.preset:\d+", setting.where)


def test_a_title_is_the_files_own_where_it_has_one():
    assert parse(BASE).title == "mine"
    assert parse("include: ib\ntitle: mine").title == "mine"
    assert parse("include: ib").title == load("ib").title
    titles = {load(name).title for name in shipped()}
    assert len(titles) == len(shipped()) - 2 and all(title[:3] in ("H20", "H80") for title in titles)


def test_the_example_of_the_page():
    page = (Path(__file__).resolve().parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    found = re.findall(r"```text\n(title: .*?)```", page, re.DOTALL)
    assert len(found) == 1 and parse(found[0])["port_rate"] == 100e9 / 8


def test_the_reference_presets():
    ib, roce = load("ib"), load("roce")
    assert (ib.text("link_layer"), ib.count("ports"), ib["port_rate"]) == ("ib", 1, 400e9 / 8)
    assert (roce.text("link_layer"), roce.count("ports"), roce["port_rate"]) == ("roce", 2, 200e9 / 8)
    assert roce.text("lag") == "hash"
    assert {load(n).text("lag") for n in shipped() if "h20" in n} == {"affinity", "hash", "none"}
    assert load("h800-cx7-roce-4plane").count("planes") == 4


@pytest.mark.parametrize("ranks, hosts", [(8, 1), (16, 2), (32, 4), (64, 8), (128, 16), (256, 32), (4, 1)])
def test_sizes(ranks, hosts):
    preset = load("roce").for_ranks(ranks)
    assert (preset.ranks, preset.count("hosts")) == (ranks, hosts)


@pytest.mark.parametrize("ranks", [0, -8, 12, 33])
def test_sizes_that_fill_no_hosts(ranks):
    with pytest.raises(BadArgument, match="do not fill hosts"):
        load("roce").for_ranks(ranks)


@pytest.mark.parametrize(
    "text, line, says",
    [
        (BASE + "port_rate = 400 [published] x", 3, "has no unit"),
        (BASE + "port_rate = 400", 3, "has no unit"),
        (BASE + "port_rate = 0 Gb/s [published] x", 3, "makes no cluster"),
        (BASE + "wqe_rate = 0 M/s [assumed] x", 3, "makes no cluster"),
        (BASE + "uplink_rate = -1 Gb/s [assumed] x", 3, "makes no cluster"),
        (BASE + "port_rate = nan Gb/s [assumed] x", 3, "makes no cluster"),
        (BASE + "port_rate = inf Gb/s [assumed] x", 3, "makes no cluster"),
        (BASE + "port_rate = many Gb/s [assumed] x", 3, "makes no cluster"),
        (BASE + "hosts = 2.5 count [assumed] x", 3, "makes no cluster"),
        (BASE + "mtu = 3000 B [assumed] x", 3, "no IB MTU"),
        (BASE + "prot_rate = 1 Gb/s [published] x", 3, "no parameter of that name"),
        (BASE + "port_rate = 400 ns [published] x", 3, "in a wrong unit"),
        (BASE + "port_rate = 400 Gb/s by hearsay", 3, "how far it can be trusted"),
        (BASE + "port_rate = 400 Gb/s [hearsay] x", 3, "how far it can be trusted"),
        (BASE + "port_rate = 400 Gb/s [published]", 3, "has no source"),
        (BASE + "\n# two\nports = 2 count [assumed] x", 5, "more ports than the device has"),
        (BASE + "lag = hash [assumed] x", 3, "a bond of one port"),
        (BASE + "lag = maybe [assumed] x", 3, "cannot be that"),
        (ROCE + "link_layer = ib [assumed] x\nrouting = ecmp [assumed] x", None, "not bonded"),
        (ROCE + "planes = 3 count [assumed] x", 2, "planes that not every NIC reaches"),
        (ROCE + "routing = adaptive [assumed] x", 2, "adaptive routing would disorder"),
        ("include: h800-cx7-roce-4plane\nlag = affinity [assumed] x", 2, "no queue affinity"),
        (BASE + "nics_per_gpu = 0.3 count [assumed] x", 3, "share NICs evenly"),
        (BASE + "hosts = 6 count [assumed] x\nhosts_per_leaf = 4 count [assumed] x", 4, "leaves of unequal size"),
        (BASE + "gibberish", 3, "no statement"),
        (BASE + "port_rate = 100gb/s [assumed] x", 3, "has no unit"),
        (BASE + "port_rate = 1e99Gb/s [assumed] x", 3, "makes no cluster"),
        (BASE + "title: again", 3, "title is set twice"),
        (BASE + "hosts = 2 count [assumed] x\ninclude: ib", 4, "an include behind statements"),
        (BASE + "include: nowhere", 3, "no preset to include"),
        (BASE + "hosts = 2 count [assumed] x\nhosts = 4 count [assumed] x", 4, "set twice"),
    ],
)
def test_what_is_wrong_names_its_line(text, line, says):
    with pytest.raises(CorruptFile, match=says) as caught:
        parse(text, "mine", "mine.preset")
    error = caught.value
    assert error.rule and error.remedy
    assert line is None or f"mine.preset:{line}:" in error.what


def test_parameters_that_nobody_sets():
    with pytest.raises(CorruptFile, match="leaves out"):
        parse("hosts = 4 count [assumed] x")


def test_a_near_miss_is_named():
    with pytest.raises(CorruptFile) as caught:
        parse(BASE + "prot_rate = 1 Gb/s [published] x")
    assert "port_rate" in caught.value.remedy
    with pytest.raises(BadArgument, match="no such preset") as refused:
        load("rocee")
    assert "roce" in refused.value.remedy


def test_files(tmp_path):
    path = tmp_path / "mine.preset"
    path.write_text(BASE + "port_rate = 100 Gb/s [assumed] a test\n")
    assert load(path)["port_rate"] == 100e9 / 8 and load(str(path)).name == "mine"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadArgument, match="cannot be read"):
        load(path)
    with pytest.raises(BadArgument, match="cannot be read"):
        load(tmp_path / "none.preset")
    path.write_text(BASE, encoding="utf-8-sig")  # as some editors save
    assert load(path).title == "mine"


@pytest.mark.parametrize("name", ["", ".", "x" * 5000, "a\0b", "/dev/null", "part-nothing", None, 3, b"ib"])
def test_what_names_no_preset(name):
    with pytest.raises(BadArgument) as caught:
        load(name)
    assert caught.value.rule and caught.value.remedy


def test_a_file_of_the_same_name_hides_no_shipped_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ib").write_text("not a preset")
    assert load("ib").title == load("h800-cx7-ib").title
    (tmp_path / "mine").write_text(BASE)
    assert load("mine").title == "mine"


def test_changes_are_checked_as_files_are():
    ib = load("ib")
    assert ib.changed(port_rate="25 GB/s")["port_rate"] == 25e9
    # Numbers are in the parameter's own unit.
    for own in (100, 100.0, np.float64(100), np.int64(100), "100Gb/s", "1e2 Gb/s", "12.5GB/s"):
        assert ib.changed(port_rate=own)["port_rate"] == 100e9 / 8
    assert ib["port_rate"] == 400e9 / 8
    for bad in ({"port_rate": 0}, {"lag": "hash"}, {"no_such": 1}, {"port_rate": "1 ns"}, {"hosts": True}):
        with pytest.raises(BadArgument):
            ib.changed(**bad)
    with pytest.raises(BadArgument, match="no number"):
        ib["lag"]
    with pytest.raises(BadArgument, match="no word"):
        ib.text("hosts")


def test_units_go_there_and_back():
    for units in DIMENSIONS.values():
        for unit in units:
            assert in_unit(in_base(3.5, unit), unit) == pytest.approx(3.5)
    assert all(dimension_of(p.unit) for p in PARAMETERS.values() if not p.choices)


def test_damaged_text_never_passes_for_another_error(rng):
    whole = BASE + "port_rate = 100 Gb/s [assumed] a test\nhosts = 8 count [assumed] x\n"
    letters = "abz09=[]#:. \n-_é"
    for _ in range(400):
        text = list(whole)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(text)))
            text[at : at + int(rng.integers(0, 3))] = letters[int(rng.integers(len(letters)))]
        try:
            parse("".join(text))
        except RdmakitError as error:
            assert error.rule and error.remedy
