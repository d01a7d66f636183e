"""Run a notebook from top to bottom in a kernel of its own, bounded in time, and ask it which exercises
passed.

Leans on `form` and on nbclient, imported late.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rdmakit
from rdmakit.course.form import tags

_ASK = "import json as _json, rdmakit.course as _course; print('RESULTS', _json.dumps(_course.results()))"
Progress = Callable[[str], None]


@dataclass(slots=True)
class Run:
    """How an execution went: seconds in cells, `results` of the exercises, and the first failure, if any."""

    book: Any
    seconds: float = 0.0
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failure: str = ""


def solved(book: Any, solutions: dict[str, str]) -> Any:
    """A copy of ``book`` with the source of each exercise cell replaced by its solution."""
    copied = copy.deepcopy(book)
    for cell in copied.cells:
        name = cell.metadata.get("exercise")
        if "exercise" in tags(cell) and name in solutions:
            cell.source = solutions[name]
    return copied


def _environment(scratch: str, given: Mapping[str, str]) -> dict[str, str]:
    """The kernel imports the rdmakit that runs this, and none of the user's IPython start-up files."""
    here = str(Path(rdmakit.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (here, given.get("PYTHONPATH"))))
    return {**given, "PYTHONPATH": path, "IPYTHONDIR": scratch, "PYTHONHASHSEED": "0"}


def _reason(error: Exception) -> str:
    """A kernel's error without its escape codes: the name, the message."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {value}"


def execute(
    book: Any, folder: Path, seconds: float = 60.0, progress: Progress = lambda text: None,
    environment: Mapping[str, str] | None = None,
) -> Run:  # fmt: skip
    """Run a copy of ``book`` with ``folder`` as working directory; all cells together may take ``seconds``.

    ``environment``: what the kernel starts with, this process's own by default; ``emu.uverbs.preloaded`` makes one
    with emulated NICs.
    Never raises for what the notebook does: `Run.failure` names the cell and the exception.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    run = Run(copy.deepcopy(book))
    with tempfile.TemporaryDirectory(prefix="rdmakit-ipython-") as scratch:
        client = NotebookClient(
            run.book, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        with client.setup_kernel(env=_environment(scratch, os.environ if environment is None else environment)):
            started = time.monotonic()
            for index, cell in enumerate(run.book.cells):
                progress(f"cell {index + 1}/{len(run.book.cells)}")
                client.timeout = max(int(seconds - (time.monotonic() - started)), 1)
                first = next(iter(cell.source.strip().splitlines()), "")
                where = f"cell {index + 1} ({', '.join(tags(cell)) or 'untagged'}: {first[:60]})"
                try:
                    client.execute_cell(cell, index)
                except CellTimeoutError:
                    run.failure = f"{where} was still running when the notebook's {seconds:g} s were over"
                except CellExecutionError as error:
                    run.failure = f"{where} raised {_reason(error)}"
                except DeadKernelError:
                    run.failure = f"{where} killed the kernel"
                run.seconds = time.monotonic() - started
                if not run.failure and run.seconds > seconds:
                    run.failure = f"took {run.seconds:.1f} s up to {where}; the bound is {seconds:g} s"
                if run.failure:
                    return run
            question = nbformat.v4.new_code_cell(_ASK)
            run.book.cells.append(question)
            client.timeout = 30
            client.execute_cell(question, len(run.book.cells) - 1)
            run.book.cells.pop()
    printed = "".join(output.get("text", "") for output in question.outputs)
    run.results = json.loads(printed.split("RESULTS", 1)[1])
    return run


def unsolved(run: Run, names: list[str]) -> list[str]:
    """Complaints about a run with solutions: it must end, and every exercise must pass."""
    if run.failure:
        return [run.failure]
    found = []
    for name in names:
        result = run.results.get(name)
        if result is None:
            found.append(f"exercise {name!r} was never checked")
        elif not result["passed"]:
            found.append(f"the solution of {name!r} does not pass its check ({result['kind']})")
    return found


def unproven(run: Run, names: list[str]) -> list[str]:
    """Complaints about a run with blank exercises: it must end, and every check must say no, for a reason of
    its own."""
    if run.failure:
        return [f"blank: {run.failure}"]
    found = []
    for name in names:
        result = run.results.get(name)
        if result is None:
            found.append(f"blank: exercise {name!r} was never checked")
        elif result["passed"]:
            found.append(f"blank: exercise {name!r} passes although nobody has solved it")
        elif result["kind"] in ("check", "timeout"):
            fault = "its check broke" if result["kind"] == "check" else "it ran out of time"
            found.append(f"blank: exercise {name!r} fails for the wrong reason: {fault}")
    return found
