"""How many rows a put has: what suits an operation best, at each step of the ladder and size of the cluster.

Leans on errors. DeepEP's test programs try sizes from 4 to 32 rows, in rings of 128, and what is published is the best
of them; so does `benchmarks/puts.py`, and BEST is what it found at 4096 tokens of 7168, over `ib` and `roce`. Early
steps want large puts, since a round trip stands behind each; later ones small puts, which arrive sooner and fill ports
all the same.
"""

from __future__ import annotations

from rdmakit.errors import BadArgument

__all__ = ["BEST", "RING", "SIZES", "rows_of_a_put"]

SIZES = (4, 8, 16, 32)
RING = 128  # slots
# Of each operation and EP size: rows of a put at steps 0 … 5.
BEST: dict[str, dict[int, tuple[int, ...]]] = {
    "dispatch": {
        16: (32, 16, 16, 8, 8, 8),
        32: (32, 16, 16, 8, 4, 8),
        64: (16, 16, 16, 4, 4, 4),
    },
    "combine": {
        16: (16, 8, 8, 8, 8, 8),
        32: (16, 8, 8, 4, 4, 4),
        64: (8, 8, 8, 4, 4, 4),
    },
}


def rows_of_a_put(op: str, ranks: int, step: int) -> int:
    """Of the EP size in BEST that is nearest, the smaller one halfway. BadArgument for no such operation or step.

    >>> rows_of_a_put("dispatch", 32, 0), rows_of_a_put("dispatch", 256, 5)
    (32, 4)
    """
    sizes = BEST.get(op, {})
    if not sizes or not 0 <= step < 6:
        raise BadArgument(
            "no such operation of the ladder",
            value=(op, step),
            rule="dispatch or combine, steps 0 … 5",
            remedy="choose one of each",
        )
    nearest = min(sizes, key=lambda known: (max(known, ranks) / min(known, ranks), known))
    return sizes[nearest][step]
