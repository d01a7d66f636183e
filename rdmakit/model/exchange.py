"""Evening out by exchange: things lie in parts (ports of a NIC, links of a leaf) and each loads several lines at once.

Leans on NumPy. Deterministic. A line is what has parts that shall be equally full: what a NIC sends has its ports, what
a leaf sends up has its links. As long as the sum of squares of all loads falls, a line's fullest part gives one thing
to another part, or changes it for one of that: where parts hold few things, moving one alone fills the other too much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["even_out"]

_PASSES = 8  # over all lines, and of a line each time; a few suffice
_LEAST = 1e-9  # of the squared mean load: smaller gains are rounding

_Ints = NDArray[np.int64]


def even_out(part: Any, line: Any, weight: Any, parts: int, allowed: Any = None) -> _Ints:
    """A part `[things]` for each thing, of 0 … `parts` - 1, no less even than the `part` that it begins with.

    `line` `[things, n]`: the lines that each loads, none twice, by `weight` `[things, n]`. `allowed` `[things, parts]`:
    where it may lie; anywhere without it.

    >>> even_out([0, 0, 0, 1], [[0], [0], [0], [0]], [[5], [3], [2], [4]], 2).tolist()
    [0, 1, 0, 1]
    """
    line, weight = np.asarray(line, np.int64), np.asarray(weight, np.float64)
    shares = _Shares(np.array(part, np.int64), line, weight, parts, allowed)
    if len(shares.part) and shares.weight.any():
        members = [np.flatnonzero((shares.line == number).any(axis=1)) for number in range(len(shares.load))]
        for _ in range(_PASSES):
            if not sum(shares.level(number, who) for number, who in enumerate(members)):
                break
    return shares.part


class _Shares:
    """What lies where, and what each part of each line carries then."""

    def __init__(self, part: _Ints, line: _Ints, weight: Any, parts: int, allowed: Any) -> None:
        self.part, self.line = part, line
        self.allowed = np.ones((len(part), parts), bool) if allowed is None else np.asarray(allowed, bool)
        self.load = np.zeros((int(line.max(initial=-1)) + 1, parts))
        np.add.at(self.load, (line, part[:, None]), weight)
        mean = self.load.mean() if self.load.any() else 1.0
        self.weight, self.load = weight / mean, self.load / mean

    def level(self, number: int, who: _Ints) -> int:
        """Relieves a line's fullest part, of those `who` load it; how often."""
        for done in range(_PASSES):
            order = self.load[number].argsort(kind="stable").tolist()
            full = order.pop()
            for other in order:
                found = self._exchange(full, other, who)
                if found:
                    break
            else:
                return done
            for thing, to in zip(found, (other, full), strict=True):
                if thing >= 0:
                    self.load[self.line[thing], self.part[thing]] -= self.weight[thing]
                    self.load[self.line[thing], to] += self.weight[thing]
                    self.part[thing] = to
        return _PASSES

    def _exchange(self, full: int, other: int, who: _Ints) -> tuple[int, int] | None:
        """The thing that goes from `full` to `other` and the one that comes back, -1 for none, that lower the sum of
        squares most; None where none do."""
        line = self.line
        gives = who[(self.part[who] == full) & self.allowed[who, other]]
        takes = np.append(who[(self.part[who] == other) & self.allowed[who, full]], -1)
        if not len(gives):
            return None
        w, v = self.weight[gives], self.weight[takes] * (takes >= 0)[:, None]
        ahead = self.load[:, other] - self.load[:, full]
        # Half of what the sum of squares changes by: what goes, and what comes, less where both load one line.
        goes = (w * (w + ahead[line[gives]])).sum(axis=1)
        comes = (v * (v - ahead[line[takes]])).sum(axis=1)
        each = range(line.shape[1])
        both = sum((line[gives, i][:, None] == line[takes, j]) * w[:, i][:, None] * v[:, j] for i in each for j in each)
        change = goes[:, None] + comes - 2 * both
        best = int(change.argmin())
        if change.flat[best] > -_LEAST:
            return None
        a, b = divmod(best, len(takes))
        return int(gives[a]), int(takes[b])
