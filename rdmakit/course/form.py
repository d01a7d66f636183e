"""The form that every notebook has, and how one is read from its jupytext source. Leans on jupytext, imported
late.

A source is ``notebooks/NN_title.py`` in jupytext's percent format; the tags of its cells say which part of
the house form each is. An exercise cell names its exercise twice: as cell metadata, for the tools, and in its
first line (``# exercise: NN.word``), for the learner and for `guard`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from rdmakit.course.guard import MARK

MOST_CELLS = 25
# Each part of the house form and what a reader finds there.
PARTS = {
    "question": "the one question, in a markdown cell with a question mark",
    "picture": "the picture that the notebook is about",
    "predict": "predict(...): the reader types a number",
    "run": "the run",
    "plot": "prediction against result",
    "break": "break it: a fault, a removed fence, a wrong port",
    "exercise": "an exercise",
    "check": "check(...) of an exercise",
    "hardware": "on real hardware: hardware_cell(...)",
    "not-modelled": "what we did not model, in a markdown cell",
}
INSTALL = "pip install 'rdmakit[notebooks]'   (or: pip install jupytext nbclient ipykernel)"


def sources(folder: str | Path) -> list[Path]:
    """The notebooks' sources in ``folder``, in order: ``00_….py``, ``01_….py`` …

    >>> sources("/nowhere")
    []
    """
    return sorted(Path(folder).glob("[0-9][0-9]_*.py"))


def read(path: str | Path) -> Any:
    """The notebook (an ``nbformat`` node) that the percent source at ``path`` describes."""
    import jupytext

    book = jupytext.read(path, fmt="py:percent")
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata.pop("jupytext", None)
    for index, cell in enumerate(book.cells):
        # jupytext draws ids at random; the same source must build the same notebook.
        cell["id"] = f"cell-{index:02d}"
    return book


def solutions_path(source: Path) -> Path:
    """Where the solutions of the notebook at ``source`` are.

    >>> solutions_path(Path("notebooks/03_wqe_by_hand.py")).as_posix()
    'notebooks/solutions/03.py'
    """
    return source.parent / "solutions" / f"{source.name[:2]}.py"


def read_solutions(source: Path) -> dict[str, str]:
    """Exercise name → cell source, from the cells with ``exercise="…"`` metadata in the solutions of
    ``source``; ``{}`` if none."""
    path = solutions_path(source)
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for cell in read(path).cells:
        name = cell.metadata.get("exercise")
        if cell.cell_type == "code" and name:
            if name in found:
                raise ValueError(f"{path.name}: exercise {name!r} is solved twice")
            found[name] = cell.source
    return found


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def exercises(book: Any) -> list[str]:
    """Names of the exercises in ``book``, in order."""
    return [cell.metadata.get("exercise", "") for cell in book.cells if "exercise" in tags(cell)]


def _private(source: str) -> list[str]:
    """Names in ``source`` that reach past the public API of rdmakit: an import of anything with a leading
    underscore."""
    # Magics and shell lines are no Python; they import nothing.
    code = "\n".join("pass" if re.match(r"\s*[%!?]", line) else line for line in source.splitlines())
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return [f"syntax error in line {error.lineno}: {error.msg}"]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [
            f"private import {n}"
            for n in names
            if n.startswith("rdmakit") and any(p.startswith("_") for p in n.split("."))
        ]
    return found


def complaints(book: Any, number: str, solutions: dict[str, str]) -> list[str]:
    """What ``book`` lacks of the house form; an empty list if nothing. ``number`` is its two digits."""
    found = []
    if len(book.cells) > MOST_CELLS:
        found.append(f"{len(book.cells)} cells; at most {MOST_CELLS}")
    present = [tag for cell in book.cells for tag in tags(cell)]
    found += [f"no cell tagged {part!r}: {meaning}" for part, meaning in PARTS.items() if part not in present]
    found += [
        f"unknown tag {tag!r}: use {', '.join(PARTS)}" for tag in dict.fromkeys(present) if tag not in PARTS
    ]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if not any("begin(" in cell.source for cell in code):
        found.append("no cell calls course.begin()")
    for index, cell in enumerate(book.cells):
        where = f"cell {index + 1}"
        mine = tags(cell)
        if cell.cell_type == "code":
            found += [f"{where}: {name}" for name in _private(cell.source)]
        if "question" in mine and (cell.cell_type != "markdown" or "?" not in cell.source):
            found.append(f"{where}: the question is a markdown cell that asks one")
        if "not-modelled" in mine and cell.cell_type != "markdown":
            found.append(f"{where}: 'not-modelled' is a markdown cell")
        for tag, call in (("predict", "predict("), ("check", "check("), ("hardware", "hardware_cell(")):
            if tag in mine and (cell.cell_type != "code" or call not in cell.source):
                found.append(f"{where}: tagged {tag!r} but calls no {call}...)")
        if "exercise" in mine:
            found += [f"{where}: {text}" for text in _exercise(cell, number, book.cells[index + 1 :])]
    names = exercises(book)
    found += [f"exercise {name!r} appears twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    found += [
        f"exercise {name!r} has no solution in solutions/{number}.py"
        for name in names
        if name and name not in solutions
    ]
    found += [
        f"solutions/{number}.py solves {name!r}, which the notebook does not ask"
        for name in solutions
        if name not in names
    ]
    return found


def _exercise(cell: Any, number: str, later: list[Any]) -> list[str]:
    name = cell.metadata.get("exercise")
    if not name:
        return ['an exercise cell needs metadata that names it: # %% tags=["exercise"] exercise="NN.word"']
    found = []
    if not str(name).startswith(f"{number}."):
        found.append(f"exercise {name!r} belongs to another notebook; its name starts with '{number}.'")
    mark = MARK.match(cell.source)
    if not mark or mark["name"] != name:
        found.append(f"the first line of the exercise must be '# exercise: {name}'")
    if not any("check" in tags(other) and str(name) in other.source for other in later):
        found.append(f"no later cell tagged 'check' calls check({name!r}, ...)")
    return found
