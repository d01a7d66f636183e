"""Fault plans as text: what is read is what was written, and what cannot be is refused with value, rule and remedy."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdmakit.emu.fault_events import EVENTS, NicAt, PortAt, QpAt, RankAt, Slow
from rdmakit.emu.faults import FAULT_NAMES, Faults, faults_of
from rdmakit.emu.faulttext import When, duration, show_duration
from rdmakit.errors import BadArgument

CHANCES = [f.name for f in fields(Faults) if f.default == 0.0 and isinstance(f.default, float) and "_ns" not in f.name]
TIMES = [f.name for f in fields(Faults) if f.name.endswith("_ns")]

small = st.integers(0, 300)
whens = st.one_of(
    st.builds(When, ns=st.floats(0, 1e12)), st.builds(lambda n: When(messages=n), st.integers(1, 1 << 40))
)
numbers = {PortAt: 3, NicAt: 2, QpAt: 3, RankAt: 1}


def events(name: str) -> st.SearchStrategy:
    kind = EVENTS[name]
    if kind is Slow:
        one = st.builds(Slow, small, st.integers(1, 1000))
    else:
        where = st.tuples(*[small] * numbers[kind])
        one = st.builds(lambda where, when: kind(name, where, when), where, whens)
    return st.lists(one, max_size=3).map(tuple)


plans = st.builds(
    Faults,
    **{name: st.floats(0, 1) for name in CHANCES},
    **{name: st.floats(0, 1e9) for name in TIMES},
    **{name: st.booleans() for name in ("adaptive_routing", "relaxed_ordering")},
    **{name: events(name) for name in EVENTS},
    budget=st.one_of(st.none(), st.integers(0, 1 << 60)),
)


@given(plans)
def test_text_and_back(plan: Faults):
    assert Faults.parse(str(plan)) == plan
    assert repr(plan) == f"Faults({plan})"
    assert bool(plan) == (plan != Faults())


@given(st.text(alphabet="lossdelaydrt=,.@+0123456789xumsg- ", max_size=40))
def test_any_text_is_a_plan_or_a_typed_error(text: str):
    try:
        plan = Faults.parse(text)
    except BadArgument as error:
        assert error.rule
    else:
        assert Faults.parse(str(plan)) == plan


@given(st.floats(0, 1e15))
def test_durations(ns: float):
    assert duration("t", show_duration(ns), 1e15) == pytest.approx(ns, rel=1e-15)


def test_the_example_of_the_issue():
    plan = Faults.parse("loss=0.01,delay=5us,port_down=0.0.1@20us,dead=3@50us,straggler=2x8")
    assert (plan.loss, plan.delay_ns) == (0.01, 5000)
    assert plan.port_down == (PortAt("port_down", (0, 0, 1), When(ns=20_000.0)),)
    assert plan.dead == (RankAt("dead", (3,), When(ns=50_000.0)),)
    assert plan.straggler == (Slow(2, 8),)


def test_events_add_up_and_everything_else_is_said_once():
    plan = Faults.parse("port_down=0.0.1@20us,port_down=1.0.2@5msg+1.0.1@6msg")
    assert [str(event) for event in plan.port_down] == ["0.0.1@20us", "1.0.2@5msg", "1.0.1@6msg"]
    with pytest.raises(BadArgument, match="twice"):
        Faults.parse("loss=0.1,loss=0.2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lost=0.1", "no such fault"),
        ("loss", "has no value"),
        ("loss=2", "no probability"),
        ("loss=-0.1", "no probability"),
        ("loss=nan", "no finite"),
        ("loss=much", "no number"),
        ("delay=5 fortnights", "no number"),
        ("delay=2s", "out of range"),
        ("budget=1.5", "out of range"),
        ("budget=-1", "out of range"),
        ("adaptive_routing=maybe", "is a flag"),
        ("dead=3", "what, and when"),
        ("dead=3@50", "when"),
        ("dead=three@50us", "rank"),
        ("dead=3@0msg", "messages"),
        ("port_down=0.1@5us", "what, and when"),
        ("straggler=2", "how slow"),
        ("straggler=2x0", "factor"),
    ],
)
def test_refusals_say_value_and_rule(text: str, said: str):
    with pytest.raises(BadArgument, match=said) as caught:
        Faults.parse(text)
    assert caught.value.rule


def test_fields_take_what_text_takes():
    assert Faults(delay_ns="5us", dead="3@50us", loss="0.5") == Faults.parse("delay=5us,dead=3@50us,loss=0.5")
    assert Faults(dead=["1@2msg", RankAt("dead", (2,), When(messages=3))]).dead[1].where == (2,)
    with pytest.raises(BadArgument, match="its own kind"):
        Faults(dead=[Slow(1, 2)])


def test_the_variable_counts_where_nothing_is_given():
    assert faults_of(None, {"RDMAKIT_FAULTS": "loss=0.5"}) == Faults(loss=0.5)
    assert faults_of("", {"RDMAKIT_FAULTS": "loss=0.5"}) == faults_of(None, {}) == Faults()


def test_names_are_those_of_the_headers():
    """In the order of enum class FaultKind (hca/faults.hpp), then MishapKind (run/mishaps.hpp)."""
    import re
    from pathlib import Path

    import rdmakit.emu

    root = Path(rdmakit.emu.__file__).parent
    kinds = re.search(r"enum class FaultKind : u32 \{(.*?)\};", (root / "hca/faults.hpp").read_text(), re.S)
    mishaps = re.search(r"enum class MishapKind : u32 \{(.*?)\}", (root / "run/mishaps.hpp").read_text(), re.S)
    assert kinds and mishaps
    names = re.findall(r"^\s*(\w+)(?: = 0)?,", kinds[1], re.M) + re.findall(r"(\w+) = \d", mishaps[1])
    assert [n if n != "rank_dies" else "dead" for n in names] == list(FAULT_NAMES)
