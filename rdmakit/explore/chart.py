"""A story as a picture: a column for each kernel and each NIC, a box for each step, arrows from cause to sight.

Leans on show, when that is there.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.explore.story import Story, Told

__all__ = ["draw"]

_MOST = 58
_PLACE = re.compile(r" \[[^\]]*:\d+\]")


def draw(story: Story) -> Any:
    """The story's figure; None where `rdmakit.show` is not installed, or nothing happened."""
    try:
        show = import_module("rdmakit.show")
    except ImportError:
        return None
    if not story.lines:
        return None
    lines = _nearest_the_end(story.lines)
    row = {step: line.number for line in lines for step in line.steps}
    arrows: list[tuple[Any, ...]] = [(row[seen], line.number) for line in lines for seen in line.sees if seen in row]
    arrows += [(row[missed], line.number, "bad") for line in lines for missed in line.should_see if missed in row]
    steps: list[tuple[Any, ...]] = [(line.number, line.lane, _text(line), _mood(line)) for line in lines]
    left_out = len(story.lines) - len(lines)
    if left_out:
        steps.insert(0, (0, "", f"{left_out} earlier lines are not drawn; print the story to see them"))
    verdict = story.verdict.splitlines()
    end = [*verdict, *(f"▸ {text}" for text in story.why)] if story.failed else []
    present = {line.lane for line in lines}
    lanes = [lane for lane in story.lanes if lane in present]
    lanes += [lane for lane in dict.fromkeys(line.lane for line in lines) if lane not in lanes]
    title = f"{story.title}: {'FAILED' if story.failed else 'held'}"
    return show.step_chart(lanes, steps, dict.fromkeys(arrows), title=title, end=end)


def _nearest_the_end(lines: list[Told]) -> list[Told]:
    """The last lines, and of the earlier ones those that went wrong and what they should have seen."""
    if len(lines) <= _MOST:
        return lines
    wanted = {step for line in lines if line.bad for step in line.should_see}
    kept = [line for line in lines[: -_MOST // 2] if line.bad or wanted & set(line.steps)][-_MOST // 2 :]
    return kept + lines[-(_MOST - len(kept)) :]


def _text(line: Told) -> str:
    text = line.what if line.bad else _PLACE.sub("", line.what)
    within = line.who.removeprefix(line.lane).strip()
    return f"{within}: {text}" if within else text


def _mood(line: Told) -> str:
    return "bad" if line.bad else "fence" if line.what.startswith("fence.") else ""
