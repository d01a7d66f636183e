"""What a check is and what it answers: a verdict, a sentence, a remedy, and the section of docs/doctor.md about it.

Leans on nothing. PASS: right for GPU-initiated RDMA. WARN: it works, slower or by a detour. FAIL: it does not work.
SKIP: what the check is about is not here, or cannot be seen from here; the sentence says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.cli.doctor.machine import Machine

__all__ = ["PAGE", "VERDICTS", "Answer", "Check", "Result", "failed", "passed", "skipped", "warned", "worst"]

VERDICTS = ("PASS", "WARN", "FAIL", "SKIP")
PAGE = "docs/doctor.md"
_SENTENCES = 2  # of several things alike, that are printed; the facts have all
_GRAVITY = {"SKIP": 0, "PASS": 1, "WARN": 2, "FAIL": 3}


@dataclass(frozen=True)
class Answer:
    """What one look found. `facts`: numbers and names behind the sentence, as JSON takes them."""

    verdict: str
    said: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def passed(said: str, **facts: Any) -> Answer:
    return Answer("PASS", said, "", facts)


def warned(said: str, remedy: str, **facts: Any) -> Answer:
    return Answer("WARN", said, remedy, facts)


def failed(said: str, remedy: str, **facts: Any) -> Answer:
    return Answer("FAIL", said, remedy, facts)


def skipped(why: str, **facts: Any) -> Answer:
    return Answer("SKIP", why, "", facts)


def worst(answers: Iterable[Answer]) -> Answer:
    """One answer for several things of a kind: the gravest verdict, the first remedy of that gravity, its first
    sentences, and everyone's facts.

    >>> worst([passed("a is up", a=1), warned("b is slow", "mend b", b=2), warned("c is slow", "mend c")])
    Answer(verdict='WARN', said='b is slow; c is slow', remedy='mend b', facts={'a': 1, 'b': 2})
    """
    found = list(answers)
    gravity = max(_GRAVITY[answer.verdict] for answer in found)
    grave = [answer for answer in found if _GRAVITY[answer.verdict] == gravity]
    facts = {name: value for answer in found for name, value in answer.facts.items()}
    sentences = list(dict.fromkeys(answer.said for answer in grave))
    said = "; ".join(sentences[:_SENTENCES]) + (
        f"; {len(sentences) - _SENTENCES} more" if sentences[_SENTENCES:] else ""
    )
    return Answer(grave[0].verdict, said, grave[0].remedy, facts)


@dataclass(frozen=True)
class Check:
    """`name`: one word; `group`: under which it is printed; `section`: a heading of PAGE; `look` answers. `live`: it
    opens or asks something, which cannot be done for a captured tree.
    """

    name: str
    group: str
    section: str
    look: Callable[[Machine], Answer]
    live: bool = False

    @property
    def link(self) -> str:
        """Page and anchor, as Markdown makes anchors of headings.

        >>> Check("gids", "ports", "Port state", passed).link
        'docs/doctor.md#port-state'
        """
        return f"{PAGE}#{self.section.lower().replace(' ', '-')}"


@dataclass(frozen=True)
class Result:
    """A check with its answer."""

    check: Check
    answer: Answer

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        answer = self.answer
        return {
            "name": self.check.name,
            "group": self.check.group,
            "verdict": answer.verdict,
            "said": answer.said,
            "remedy": answer.remedy,
            "link": self.check.link,
            "facts": answer.facts,
        }
