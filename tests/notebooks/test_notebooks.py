"""Every notebook of the course: in the house form, running with its solutions, and unsolved when it is
blank.

Solved ones run on a machine that has an emulated ConnectX, where that can be had: so do their cells on real hardware.
Blank ones run on this machine as it is: those cells say why they are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nic_cells import SAYS, printed

from rdmakit.course.build import absent, tracked
from rdmakit.course.execute import execute, solved, unproven, unsolved
from rdmakit.course.form import INSTALL, complaints, exercises, read, read_solutions, sources
from rdmakit.course.hardware import missing as lacks
from rdmakit.emu.uverbs import missing, preloaded

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(bool(absent()), reason=f"{', '.join(absent())} not installed: {INSTALL}"),
]

FOLDER = Path(__file__).parents[2] / "notebooks"
each_notebook = pytest.mark.parametrize("source", sources(FOLDER), ids=lambda path: path.stem)


@each_notebook
def test_house_form(source: Path):
    assert complaints(read(source), source.name[:2], read_solutions(source)) == []


@contextmanager
def nics() -> Iterator[dict[str, str] | None]:
    """What a kernel on a machine with two emulated NICs starts with; None where they cannot be had."""
    if missing():
        yield None
        return
    with preloaded(2) as environment:
        yield environment


@each_notebook
@pytest.mark.timeout(180)
def test_solutions_pass(source: Path):
    book = read(source)
    with nics() as environment:
        run = execute(solved(book, read_solutions(source)), source.parent, environment=environment)
    assert unsolved(run, exercises(book)) == []
    if environment is None:
        pytest.skip(f"its solutions pass; its cells on real hardware did not run: {missing()}")
    said = printed(run.book)
    for pattern in SAYS[source.name[:2]]:
        assert re.search(pattern, said), f"{pattern} is not in\n{said}"


@each_notebook
@pytest.mark.timeout(180)
def test_blank_exercises_fail(source: Path):
    book = read(source)
    run = execute(book, source.parent)
    assert unproven(run, exercises(book)) == []
    if lacks("rdma") and not missing():
        said = printed(run.book)
        assert "skipped: no RDMA device here" in said and "rdmakit connectx -- jupyter lab" in said, said


def test_no_built_notebook_is_in_git():
    assert tracked(FOLDER) == []
