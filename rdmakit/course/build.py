"""Build, execute and prove the notebooks: ``python -m rdmakit.course.build [--execute] [--prove-blank]``.

Leans on `form` and `execute`; jupytext and nbclient come with the extra ``[notebooks]``. Without options it
checks the house form and writes ``NN_title.ipynb`` beside each source, without outputs. ``--execute`` runs
each with its solutions; ``--prove-blank`` runs it as the learner gets it, and fails if a check passes. The
exit status is 0 only if all is well.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdmakit.course.execute import execute, solved, unproven, unsolved
from rdmakit.course.form import INSTALL, complaints, exercises, read, read_solutions, sources


@dataclass(slots=True)
class Report:
    """What became of one notebook: the steps that went well, and the complaints."""

    source: Path
    steps: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        mark = "✗" if self.complaints else "✓"
        lines = [f"{mark} {self.source.stem:32s} {' · '.join(self.steps)}".rstrip()]
        return "\n".join([*lines, *(f"    {text}" for text in self.complaints)])


def absent() -> list[str]:
    """The modules that building needs and that are not installed."""
    return [
        name
        for name in ("jupytext", "nbformat", "nbclient", "ipykernel")
        if importlib.util.find_spec(name) is None
    ]


def _digest(book: Any) -> str:
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in book.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(book: Any, path: Path, force: bool = False) -> str:
    """Write ``book`` without outputs to ``path``, unless the learner has changed cells of the one that is
    there.

    Returns what was done, in words.
    """
    import nbformat

    book.metadata["rdmakit"] = {"built": _digest(book)}
    if path.exists() and not force:
        try:
            there = nbformat.read(path, as_version=4)
            built = there.metadata.get("rdmakit", {}).get("built")
            edited = _digest(there) != built
        except Exception:
            # Whatever is wrong with it, it is not ours to overwrite.
            edited = True
        if edited:
            return f"kept {path.name}, which you have edited (--force overwrites it)"
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, path)
    return f"wrote {path.name}"


def tracked(folder: Path) -> list[str]:
    """Built notebooks that git holds; there should be none. ``[]`` outside a git checkout."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "--", "*.ipynb"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def process(source: Path, options: argparse.Namespace) -> Report:
    """All that ``options`` ask for, for one notebook."""
    report = Report(source)

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K… {source.stem}: {text}", end="", file=sys.stderr, flush=True)

    book, solutions = read(source), read_solutions(source)
    names = exercises(book)
    report.complaints += complaints(book, source.name[:2], solutions)
    if not report.complaints:
        report.steps.append(f"form ok ({len(book.cells)} cells)")
    if options.execute:
        run = execute(
            solved(book, solutions),
            source.parent,
            options.seconds,
            lambda text: progress(f"with solutions, {text}"),
        )
        found = unsolved(run, names)
        report.complaints += found
        if not found:
            report.steps.append(f"solutions pass, {run.seconds:.1f} s")
        if options.out:
            Path(options.out).mkdir(parents=True, exist_ok=True)
            import nbformat

            nbformat.write(run.book, Path(options.out) / f"{source.stem}.ipynb")
    if options.prove_blank:
        run = execute(book, source.parent, options.seconds, lambda text: progress(f"blank, {text}"))
        found = unproven(run, names)
        report.complaints += found
        if not found:
            report.steps.append(f"blank fails, {run.seconds:.1f} s")
    if not options.check_only:
        report.steps.append(write(book, source.with_suffix(".ipynb"), options.force))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m rdmakit.course.build", description=__doc__.split("\n\n")[0]
    )
    made.add_argument("sources", nargs="*", type=Path, help="sources to build (default: all in --folder)")
    made.add_argument(
        "--folder", type=Path, default=Path("notebooks"), help="where the sources are (default: notebooks)"
    )
    made.add_argument(
        "--execute", action="store_true", help="run each notebook with its solutions; all checks must pass"
    )
    made.add_argument(
        "--prove-blank", action="store_true", help="run each notebook as it is; no check may pass"
    )
    made.add_argument(
        "--seconds", type=float, default=60.0, help="bound of one run of one notebook (default: 60)"
    )
    made.add_argument("--out", help="folder for the executed notebooks, with their outputs")
    made.add_argument("--check-only", action="store_true", help="write no .ipynb beside the sources")
    made.add_argument("--force", action="store_true", help="overwrite notebooks that you have edited")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every notebook is well, 1 if not, 2 if something is not installed or not
    found."""
    options = parser().parse_args(arguments)
    if lacking := absent():
        print(f"building notebooks needs {', '.join(lacking)}: {INSTALL}", file=sys.stderr)
        return 2
    chosen = options.sources or sources(options.folder)
    if not chosen:
        print(f"no notebooks NN_title.py in {options.folder.resolve()}", file=sys.stderr)
        return 2
    started, bad = time.monotonic(), 0
    for number, source in enumerate(chosen, 1):
        try:
            report = process(source.resolve(), options)
        except (OSError, ValueError) as error:
            report = Report(source, complaints=[f"{type(error).__name__}: {error}"])
        bad += bool(report.complaints)
        print(f"[{number}/{len(chosen)}] {report}", flush=True)
    for name in tracked(chosen[0].resolve().parent):
        bad += 1
        print(
            f"✗ {name} is in git: remove it (git rm --cached {name}); notebooks are built from their sources"
        )
    print(f"{len(chosen)} notebooks, {bad} with complaints, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
