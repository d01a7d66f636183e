"""The machinery that builds, executes and proves notebooks, tried on a copy of ``example/`` that is bent in
every way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.course.build import absent, main, tracked
from rdmakit.course.form import INSTALL, complaints, read, read_solutions, sources

pytestmark = pytest.mark.skipif(bool(absent()), reason=f"{', '.join(absent())} not installed: {INSTALL}")

EXAMPLE = Path(__file__).parent / "example"
BLANK = "    return None  # your list in place of None"


class Course:
    """The example course in a folder of its own, and what ``python -m rdmakit.course.build`` says of it."""

    def __init__(self, folder: Path, capsys) -> None:
        shutil.copytree(EXAMPLE, folder)
        self.folder, self.capsys = folder, capsys
        self.source = folder / "99_doubling.py"

    def bend(self, old: str, new: str, path: Path | None = None) -> None:
        path = path or self.source
        text = path.read_text()
        assert old in text, f"the example has no {old!r}"
        path.write_text(text.replace(old, new))

    def build(self, *arguments: str) -> tuple[int, str]:
        status = main(["--folder", str(self.folder), *arguments])
        return status, self.capsys.readouterr().out

    def form(self) -> str:
        return "\n".join(complaints(read(self.source), "99", read_solutions(self.source)))


@pytest.fixture
def example(tmp_path, capsys):
    return Course(tmp_path / "course", capsys)


def test_the_example_is_well(example):
    status, out = example.build("--execute", "--prove-blank", "--out", str(example.folder / "out"))
    assert status == 0, out
    assert all(
        words in out
        for words in ("form ok (18 cells)", "solutions pass", "blank fails", "wrote 99_doubling.ipynb")
    )
    import nbformat

    built = nbformat.read(example.folder / "99_doubling.ipynb", 4)
    assert not any(cell.get("outputs") for cell in built.cells) and "your list in place of None" in str(built)
    executed = str(nbformat.read(example.folder / "out" / "99_doubling.ipynb", 4))
    assert "✓ passed: 99.double" in executed and "skipped:" in executed


def test_the_same_source_builds_the_same_bytes(example):
    example.build()
    first = (example.folder / "99_doubling.ipynb").read_bytes()
    example.build("--force")
    assert (example.folder / "99_doubling.ipynb").read_bytes() == first


def test_a_learners_work_is_not_overwritten(example):
    example.build()
    built = example.folder / "99_doubling.ipynb"
    built.write_text(built.read_text().replace("return None", "return sizes"))
    assert "kept 99_doubling.ipynb, which you have edited" in example.build()[1]
    assert "return sizes" in built.read_text()
    assert "wrote" in example.build("--force")[1] and "return sizes" not in built.read_text()


def test_a_blank_exercise_that_passes_is_found(example):
    example.bend(BLANK, "    return [size + size for size in sizes]")
    status, out = example.build("--prove-blank", "--check-only")
    assert status == 1 and "blank: exercise '99.double' passes although nobody has solved it" in out


def test_a_solution_that_is_wrong_is_found(example):
    example.bend("size + size", "size", example.folder / "solutions/99.py")
    status, out = example.build("--execute", "--check-only")
    assert status == 1 and "the solution of '99.double' does not pass its check (wrong)" in out


def test_an_endless_loop_in_an_exercise_is_stopped(example):
    example.bend(BLANK, "    while True:\n        pass")
    status, out = example.build("--prove-blank", "--check-only")
    assert status == 1 and "fails for the wrong reason: it ran out of time" in out


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="CPython 3.10 looks for signals nowhere in such a loop, not even for Ctrl-C"
)
def test_an_endless_loop_in_the_exercise_cell_itself_is_stopped(example):
    example.bend("course.begin()", "course.begin(seconds=0.5)")
    example.bend(BLANK, f"{BLANK}\n\n\nwhile True:\n    try:\n        pass\n    except:\n        pass")
    status, out = example.build("--prove-blank", "--check-only")
    assert (
        status == 1
        and "OutOfTime: still running after 0.5 s" in out
        and "exercise: # exercise: 99.double" in out
    )


def test_the_kernel_lives_on_after_a_stopped_cell(example):
    example.bend("course.begin()", "course.begin(seconds=0.3)")
    example.bend(BLANK, f"{BLANK}\n\n\nwhile True:\n    pass")
    # With this tag of nbclient's the run goes on behind the exception, as a reader would.
    example.bend('tags=["exercise"]', 'tags=["exercise", "raises-exception"]')
    status, out = example.build("--prove-blank", "--check-only")
    assert status == 1 and "blank fails" in out and "unknown tag 'raises-exception'" in out


def test_a_notebook_that_takes_too_long_is_stopped(example):
    example.bend("count = len", "import time\n\ntime.sleep(30)\ncount = len")
    status, out = example.build("--execute", "--check-only", "--seconds", "3")
    assert status == 1 and "(run: import time) was still running when the notebook's 3 s were over" in out


def test_an_exception_names_cell_and_error(example):
    example.bend("count = len", "count = undefined_name + len")
    status, out = example.build("--execute", "--check-only")
    assert status == 1 and "(run: count = undefined_name" in out
    assert "raised NameError: name 'undefined_name' is not defined" in out


def test_a_check_that_breaks_is_no_proof(example):
    example.bend('trial.is_a(answer, list, "what double returns")', "len(answer)")
    status, out = example.build("--prove-blank", "--check-only")
    assert status == 1 and "fails for the wrong reason: its check broke" in out


def test_an_exercise_that_is_never_checked_is_no_proof(example):
    example.bend('course.check("99.double", double)', 'if False:\n    course.check("99.double", double)')
    assert "was never checked" in example.build("--prove-blank", "--check-only")[1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('tags=["break"]', "", "no cell tagged 'break'"),
        ('tags=["picture"]', 'tags=["pitcure"]', "unknown tag 'pitcure'"),
        ("ring of doubled size have?", "ring", "the question is a markdown cell that asks one"),
        ("course.begin()", "pass", "no cell calls course.begin()"),
        (
            'tags=["predict"]\ncourse.predict',
            'tags=["predict"]\nprint',
            "tagged 'predict' but calls no predict(",
        ),
        ("# exercise: 99.double\n", "", "the first line of the exercise must be '# exercise: 99.double'"),
        ('] exercise="99.double"', "]", "needs metadata that names it"),
        (
            "from rdmakit import course, show",
            "from rdmakit import course, show, _world",
            "private import rdmakit._world",
        ),
        ("count = len", "count = = len", "syntax error in line 1"),
        (
            "# %% [markdown]\n# ## Predict",
            "# %%\n" * 9 + "# %% [markdown]\n# ## Predict",
            "27 cells; at most 25",
        ),
    ],
)
def test_the_house_form_is_kept(example, old, new, words):
    assert example.form() == ""
    example.bend(old, new)
    assert words in example.form()


def test_exercises_and_solutions_belong_together(example):
    solutions = example.folder / "solutions/99.py"
    example.bend('exercise="99.double"', 'exercise="99.triple"', solutions)
    assert "'99.double' has no solution in solutions/99.py" in example.form()
    assert "solves '99.triple', which the notebook does not ask" in example.form()
    solutions.write_text(solutions.read_text() * 2)
    with pytest.raises(ValueError, match="solved twice"):
        read_solutions(example.source)
    solutions.unlink()
    assert "has no solution" in example.form()


def test_a_complaint_about_one_notebook_does_not_hide_the_next(example):
    shutil.copy(example.source, example.folder / "98_other.py")
    status, out = example.build("--check-only")
    assert (
        status == 1
        and "✗ 98_other" in out
        and "belongs to another notebook" in out
        and "✓ 99_doubling" in out
    )
    assert [path.name for path in sources(example.folder)] == ["98_other.py", "99_doubling.py"]


def test_built_notebooks_in_git_are_found(example):
    git = shutil.which("git")
    if not git:
        pytest.skip("git is not installed")
    example.build()
    subprocess.run([git, "init", "-q"], cwd=example.folder, check=True)
    assert tracked(example.folder) == []
    subprocess.run([git, "add", "-f", "99_doubling.ipynb"], cwd=example.folder, check=True)
    status, out = example.build("--check-only")
    assert status == 1 and "99_doubling.ipynb is in git" in out


def test_nothing_to_build_is_an_error(tmp_path, capsys):
    assert main(["--folder", str(tmp_path)]) == 2
    assert "no notebooks NN_title.py" in capsys.readouterr().err
