"""Every place of the device code whose order, scope or condition a protocol may rest on, found in its text.

Leans on the standard library. A place is known by file, line and kind of primitive: one of a kind a line is the
rule, and `sites` refuses a line with two, since no run could tell them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import rdmakit
from rdmakit.errors import BadArgument

__all__ = ["Kind", "Mutant", "Site", "mutants_of", "sites"]


class Kind(IntEnum):
    """What stands at a place (enum class Primitive, explore/mutation.hpp)."""

    LOAD = 0
    STORE = 1
    UPDATE = 2
    FENCE = 3
    CONDITION = 4
    BULK = 5  # a proxy fence, or a wait for bulk copies


_PRIMITIVES = {
    "load_acquire": Kind.LOAD,
    "load_relaxed": Kind.LOAD,
    "store_release": Kind.STORE,
    "store_relaxed": Kind.STORE,
    "exchange": Kind.UPDATE,
    "exchange_acquire": Kind.UPDATE,
    "exchange_release": Kind.UPDATE,
    "compare_swap": Kind.UPDATE,
    "fetch_add": Kind.UPDATE,
    "fetch_max": Kind.UPDATE,
    "fetch_or": Kind.UPDATE,
    "fetch_wrap": Kind.UPDATE,
    "fence": Kind.FENCE,
    "holds": Kind.CONDITION,
    "mbarrier_test": Kind.LOAD,
    "mbarrier_arrive": Kind.UPDATE,
    "mbarrier_arrive_expect": Kind.UPDATE,
    "proxy_fence": Kind.BULK,
    "proxy_fence_shared": Kind.BULK,
    "bulk_wait": Kind.BULK,
    "bulk_wait_read": Kind.BULK,
}
_CALL = re.compile(r"\b(" + "|".join(_PRIMITIVES) + r")\s*(?:<\s*(?:Scope::(\w+)|(\w+))\s*>)?\s*\(")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_SCOPES = {"cta": 0, "gpu": 1, "sys": 2}
# What the primitives are made of, and the host's half of the CPU runner: no protocol stands there.
_BELOW = {
    *("atom.cuh", "atom_bulk.cuh", "config.cuh", "cost.cuh"),
    *("cpu.cuh", "cpu_preempt.cuh", "cpu_watch.cuh", "cuda_builtins.cuh"),
    *("primitive_costs.cu", "flag_ping.cu", "copy_rate.cu"),  # they time primitives
}
# Of an HCA made of warps, where its orders are kept: the way that a put and its signal go, and how work ends.
_HCA = {"hca_near.cuh", "hca_complete.cuh"}


@dataclass(frozen=True, order=True)
class Site:
    """One primitive in the text: `file` as device code names it ("rdmakit/queue.cuh")."""

    file: str
    line: int
    kind: Kind
    name: str
    scope: int  # 0 cta, 1 gpu, 2 sys: as far as it reaches, or could

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name}"


@dataclass(frozen=True)
class Mutant:
    """A site made weaker: `what` says how, `change` is what `core.mutate` takes."""

    site: Site
    what: str
    change: tuple[tuple[str, bool | int], ...]

    def __str__(self) -> str:
        return f"{self.site}: {self.what}"


def _blank(text: str) -> str:
    return _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _files() -> Iterator[Path]:
    include = Path(rdmakit.get_include())
    for path in sorted([*include.glob("rdmakit/*.cuh"), *include.glob("kernels/*.cu")]):
        if path.name in _HCA or (path.name not in _BELOW and not path.name.startswith("hca")):
            yield path


def sites() -> list[Site]:
    """All of them, in order of the text. BadArgument for a line that has two of a kind."""
    found: list[Site] = []
    include = Path(rdmakit.get_include())
    for path in _files():
        text = _blank(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(include))
        for call in _CALL.finditer(text):
            if call[1] == "holds" and ", place)" in text[call.start() : text.index("\n", call.start())]:
                continue  # known by its caller's line: Explore tells which lines those are
            line = text.count("\n", 0, call.start()) + 1
            kind = _PRIMITIVES[call[1]]
            of_block = kind is Kind.BULK or call[1].startswith("mbarrier_")
            scope = 0 if of_block else _SCOPES.get(call[2] or "", 2 if call[3] else 1)
            found.append(Site(name, line, kind, call[1], scope))
    twice = [place for place, n in Counter((s.file, s.line, s.kind) for s in found).items() if n > 1]
    if twice:
        raise BadArgument(
            "two primitives of one kind on a line of device code",
            value=", ".join(f"{file}:{line}" for file, line, _ in twice),
            rule="one a line: a mutation is known by file, line and kind",
            remedy="break the line",
        )
    return found


def mutants_of(site: Site) -> list[Mutant]:
    """Everything that can be made weaker at a place, one thing at a time."""
    made: list[tuple[str, dict[str, bool | int]]] = []
    if site.kind is Kind.FENCE:
        made.append(("no fence", {"removed": True}))
    if site.kind is Kind.BULK:
        made.append(("left out", {"removed": True}))
    if site.kind is Kind.CONDITION:
        made.append(("taken for true", {"removed": True}))
    if site.name in ("load_acquire", "mbarrier_test", "exchange", "exchange_acquire"):
        made.append(("no acquire", {"no_acquire": True}))
    if site.name in ("store_release", "mbarrier_arrive", "exchange", "exchange_release"):
        made.append(("no release", {"no_release": True}))
    if site.kind is not Kind.CONDITION:
        made += [(f"scope {name}", {"scope": reach}) for name, reach in _SCOPES.items() if reach < site.scope]
    return [Mutant(site, what, tuple(change.items())) for what, change in made]
