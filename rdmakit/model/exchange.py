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

    `line` `[things, n]`: the lines that each loads, by `weight` `[things, n]`. `allowed` `[things, parts]`: where it
    may lie; anywhere without it.

    >>> even_out([0, 0, 0, 1], [[0], [0], [0], [0]], [[5], [3], [2], [4]], 2).tolist()
    [0, 1, 0, 1]
    """
    found: _Ints = np.array(part, np.int64)
    line, weight = np.asarray(line, np.int64), np.asarray(weight, np.float64)
    if not len(found) or not weight.any():
        return found
    load = np.zeros((int(line.max()) + 1, parts))
    np.add.at(load, (line, found[:, None]), weight)
    weight, load = weight / load.mean(), load / load.mean()
    if allowed is None:
        allowed = np.ones((len(found), parts), bool)
    members = [np.flatnonzero((line == number).any(axis=1)) for number in range(len(load))]
    for _ in range(_PASSES):
        if not sum(_level(n, who, found, line, weight, load, allowed) for n, who in enumerate(members)):
            break
    return found


def _level(number: int, who: _Ints, part: _Ints, line: _Ints, weight: Any, load: Any, allowed: Any) -> int:
    """Relieves a line's fullest part; how often. `part` and `load` change."""
    for done in range(_PASSES):
        order = load[number].argsort(kind="stable").tolist()
        full = order.pop()
        for other in order:
            found = _exchange(full, other, who, part, line, weight, load, allowed)
            if found:
                break
        else:
            return done
        for thing, to in zip(found, (other, full), strict=True):
            if thing >= 0:
                load[line[thing], part[thing]] -= weight[thing]
                load[line[thing], to] += weight[thing]
                part[thing] = to
    return _PASSES


def _exchange(
    full: int, other: int, who: _Ints, part: _Ints, line: _Ints, weight: Any, load: Any, allowed: Any
) -> tuple[int, int] | None:
    """The thing that goes from `full` to `other` and the one that comes back, -1 for none, that lower the sum of
    squares most; None where none do."""
    gives = who[(part[who] == full) & allowed[who, other]]
    takes = np.append(who[(part[who] == other) & allowed[who, full]], -1)
    if not len(gives):
        return None
    w, v = weight[gives], weight[takes] * (takes >= 0)[:, None]
    ahead = load[:, other] - load[:, full]
    # Half of what the sum of squares changes by: what goes, and what comes, less where both load one line.
    goes = (w * (w + ahead[line[gives]])).sum(axis=1)
    comes = (v * (v - ahead[line[takes]])).sum(axis=1)
    lines = range(line.shape[1])
    both = sum((line[gives, i][:, None] == line[takes, j]) * w[:, i][:, None] * v[:, j] for i in lines for j in lines)
    change = goes[:, None] + comes - 2 * both
    best = int(change.argmin())
    if change.flat[best] > -_LEAST:
        return None
    a, b = divmod(best, len(takes))
    return int(gives[a]), int(takes[b])
