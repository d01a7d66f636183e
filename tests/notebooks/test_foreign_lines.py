"""The check of notebook 13 knows the two lines by what the code does without them, and tells what a wrong one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdmakit import course

SOURCE = Path(__file__).parents[2] / "notebooks" / "13_reading_the_real_ones.py"
THEIRS = SOURCE.read_text().split('THEIRS = r"""')[1].split('"""')[0]
RECORD, BELL = "set(r.sent, upto & 0xffff);", "set(r.page, doorbell_next(r.qp->qpn, upto));"


def number(text: str) -> int:
    return [line.strip() for line in THEIRS.splitlines()].index(text)


@pytest.fixture(autouse=True)
def fresh():
    course.forget()


@pytest.mark.parametrize(
    ("record", "bell", "nic", "words"),
    [
        (BELL, RECORD, "dbrec", "it does something else"),
        ("set(r.drained, upto & 0xffffff);", BELL, "dbrec", "that line does not write it"),
        (RECORD, "store_relaxed<Scope::sys>(r.box, upto);", "dbrec", "that line does not wake it"),
        (RECORD, "store_release<Scope::gpu>(r.filled, upto);", "dbrec", "one line is not of the two"),
        (RECORD, "}", "dbrec", "does not compile"),
        (RECORD, BELL, "register", "the lines are right. But with seed 0"),
        (RECORD, BELL, "neither", "nic is one of dbrec, register, no_dbr"),
    ],
)
def test_what_is_wrong_is_told(record: str, bell: str, nic: str, words: str):
    result = course.check("13.dbr_first", THEIRS, number(record), number(bell), nic, 0)
    assert not result.passed and words in result.message


def test_only_seeds_that_fail_prove_it():
    seeds = range(8)
    passed = [course.check("13.dbr_first", THEIRS, number(RECORD), number(BELL), "dbrec", s).passed for s in seeds]
    assert 0 < sum(passed) < len(passed)
