"""Results on a terminal: a line a check, and below what is to be mended how, and where that is explained.

Leans on check. Colour only on a terminal that wants it (NO_COLOR, TERM=dumb); 80 to 120 columns.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO

from rdmakit.cli.doctor.check import Result

__all__ = ["Style", "lines_of"]

_COLOURS = {"PASS": "32", "WARN": "33", "FAIL": "31;1", "SKIP": "2"}
_NAME, _INDENT = 11, 19


class Style:
    """How wide lines may be and whether verdicts are coloured."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width, self.colour = width, colour

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Style:
        """What suits a stream: its terminal's columns within 80 … 120, 100 where there is none."""
        terminal = stream.isatty()
        columns = shutil.get_terminal_size((100, 24)).columns if terminal else 100
        wants = terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        return cls(min(max(columns, 80), 120), wants)

    def verdict(self, word: str) -> str:
        return f"\033[{_COLOURS[word]}m{word}\033[0m" if self.colour else word

    def strong(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self.colour else text

    def quiet(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.colour else text


def _wrapped(text: str, first: str, style: Style) -> list[str]:
    found = textwrap.wrap(
        text, style.width, initial_indent=first, subsequent_indent=" " * _INDENT, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    return found or [first]


def _skipped_alike(results: Iterable[Result]) -> Iterator[list[Result]]:
    """Results one by one, but for neighbours of a group that are skipped for one reason: those come together."""
    held: list[Result] = []
    for result in results:
        alike = (
            held
            and held[0].answer.verdict == result.answer.verdict == "SKIP"
            and (held[0].check.group, held[0].answer.said) == (result.check.group, result.answer.said)
        )
        if held and not alike:
            yield held
            held = []
        held.append(result)
        if result.answer.verdict != "SKIP":
            yield held
            held = []
    if held:
        yield held


def _lines(results: list[Result], style: Style) -> Iterator[str]:
    check, answer = results[0].check, results[0].answer
    names = ", ".join(result.check.name for result in results)
    said = answer.said if len(results) == 1 else f"{names}: {answer.said}"
    name = check.name.ljust(_NAME) if len(results) == 1 else ""
    verdict, *body = _wrapped(said, f"  {answer.verdict}  {name}", style)
    yield verdict.replace(answer.verdict, style.verdict(answer.verdict), 1)
    yield from body
    if answer.remedy:
        *lines, last = _wrapped(answer.remedy, " " * (_INDENT - 2) + "→ ", style)
        yield from lines
        link = style.quiet(f"[{check.link}]")
        if len(last) + len(check.link) + 3 <= style.width:
            yield f"{last} {link}"
        else:
            yield from (last, " " * _INDENT + link)


def lines_of(results: Iterable[Result], style: Style) -> Iterator[str]:
    """The lines, group by group, each as soon as its result is there."""
    group = ""
    for alike in _skipped_alike(results):
        if alike[0].check.group != group:
            group = alike[0].check.group
            yield style.strong(group)
        yield from _lines(alike, style)
