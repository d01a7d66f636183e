"""Each strategy of the sequence lock declares in which modes it is right: exploration finds a failure in all others,
and none in these. The table is rdmakit/signal/strategies.py; modes are orderings × readers.
"""

from __future__ import annotations

from itertools import product

import pytest

from rdmakit.explore import Explorer
from rdmakit.signal import Ordering, Reader, Strategy, is_right

RIGHT, WRONG = 300, 1000  # schedules: that must hold, that must suffice
DEEP = 20_000
PRODUCT = [
    (strategy, crc, ordering, reader)
    for strategy in Strategy
    for crc in ([False, True] if strategy is Strategy.EAGER else [False])
    for ordering, reader in product(Ordering, Reader)
]


def explorer(strategy, crc, ordering, reader, **more):
    options = {"strategy": strategy.name.lower(), "ordering": ordering.name.lower(), "crc": crc, **more}
    return Explorer("lock", reader=reader.name.lower(), **options)


def named(case):
    strategy, crc, ordering, reader = case
    return "-".join([strategy.name, *(["CRC"] if crc else []), ordering.name, reader.name]).lower()


def right_and_wrong():
    right = [case for case in PRODUCT if is_right(case[0], *case[2:], crc=case[1])]
    return right, [case for case in PRODUCT if case not in right]


MODES_RIGHT, MODES_WRONG = right_and_wrong()


def test_the_product_is_whole():
    assert len(PRODUCT) == 7 * 3 * 2 and {case[0] for case in MODES_WRONG} >= {Strategy.SPLIT, Strategy.WRITE}
    assert {case[0] for case in MODES_RIGHT} == set(Strategy) - {Strategy.SPLIT}


# A payload of one line and one of several: lines of a WRITE may land in any order.
@pytest.mark.parametrize("length", [16, 200])
@pytest.mark.parametrize("case", MODES_RIGHT, ids=named)
def test_nothing_fails_where_a_strategy_is_right(case, length, seed):
    """Nor do accesses that only luck orders count as held: a latent race is a failure, too."""
    found = explorer(*case, length=length).run(RIGHT, seed=seed)
    assert found.ok and found.schedules == RIGHT, found


@pytest.mark.parametrize("length", [16, 200])
@pytest.mark.parametrize("case", MODES_WRONG, ids=named)
def test_damage_is_found_where_it_is_wrong(case, length, seed):
    """Latent races do not count here: what the receiver copies is wrong, or it refuses what is no lie."""
    found = explorer(*case, length=length, races=False).run(WRONG, seed=seed)
    assert not found.ok and found.failure.verdict.name in ("WRONG", "REPORTED"), found


@pytest.mark.explore
@pytest.mark.parametrize("case", MODES_RIGHT, ids=named)
def test_nothing_fails_for_long(case, seed):
    found = explorer(*case).run(DEEP, seed=seed)
    assert found.ok, found


# ---- every ticket field of the wire starts again
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("case", MODES_RIGHT, ids=named)
def test_tickets_start_again(case, bits, seed):
    found = explorer(*case, first_ticket=(1 << bits) - 1).run(RIGHT // 3, seed=seed)
    assert found.ok, found


# ---- all schedules within a bound
def exhaust(strategy, switches):
    # In the mode that is right for all of them but `eager`, whose lines only a host sees in order.
    reader = Reader.HOST if strategy is Strategy.EAGER else Reader.GPU
    found = explorer(strategy, False, Ordering.STRICT, reader, transfers=3).exhaust(stale=1, switches=switches)
    print(found)
    return found


@pytest.mark.parametrize("switches", [1, pytest.param(2, marks=pytest.mark.explore)])
@pytest.mark.parametrize("strategy", Strategy, ids=lambda s: s.name.lower())
def test_all_schedules_of_three_transfers_within_a_bound(strategy, switches, seed):
    """2 ranks × 3 transfers: at most one stale load, and so many turns that another takes than who is next in line."""
    found = exhaust(strategy, switches)
    assert f"at most 1 stale loads, at most {switches} switches" in found.bounds
    if strategy is Strategy.SPLIT:
        assert not found.ok and found.failure.seed == -1
    else:
        assert found.ok and found.complete and "all there are within the bound" in str(found), found
        assert found.distinct > 20
