"""Every notebook of the course: in the house form, running with its solutions, and unsolved when it is
blank."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdmakit.course.build import absent, tracked
from rdmakit.course.execute import execute, solved, unproven, unsolved
from rdmakit.course.form import INSTALL, complaints, exercises, read, read_solutions, sources

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(bool(absent()), reason=f"{', '.join(absent())} not installed: {INSTALL}"),
]

FOLDER = Path(__file__).parents[2] / "notebooks"
each_notebook = pytest.mark.parametrize("source", sources(FOLDER), ids=lambda path: path.stem)


@each_notebook
def test_house_form(source: Path):
    assert complaints(read(source), source.name[:2], read_solutions(source)) == []


@each_notebook
@pytest.mark.timeout(180)
def test_solutions_pass(source: Path):
    book = read(source)
    run = execute(solved(book, read_solutions(source)), source.parent)
    assert unsolved(run, exercises(book)) == []


@each_notebook
@pytest.mark.timeout(180)
def test_blank_exercises_fail(source: Path):
    book = read(source)
    assert unproven(execute(book, source.parent), exercises(book)) == []


def test_no_built_notebook_is_in_git():
    assert tracked(FOLDER) == []
