"""What `bench scale` measures, in which order and until when; the routings; and what follows from the times.

Leans on ep.routing, ep.recording. No GPU and no torch: ranks and their parent compute the same from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rdmakit.cli.bench_ep import LINK_GBS
from rdmakit.ep import recording
from rdmakit.ep.routing import Routing, uniform

__all__ = [
    "COPY_GOAL", "LL_GOALS", "SMS", "TOPK", "Case", "busiest", "cases", "derived", "fixed", "flatness", "rank_counts",
    "routing", "share",
]  # fmt: skip

SMS = 24, 12
TOPK = 8
COPY_GOAL = 75.0  # % of the measured peer copy, in wire bytes a GPU, with at most 24 SMs
LL_GOALS = {"ll_dispatch": 30.0, "ll_combine": 45.0}  # µs
FLAT = 0.1
_EXPERTS = {"normal": 256, "ll": 288}


class Case(NamedTuple):
    """Operations of one input: `kind` normal or ll; `routing` uniform, fixed or recorded."""

    kind: str
    tokens: int
    routing: str

    @property
    def experts(self) -> int:
        """Of all ranks; the recording has its own number."""
        return 64 if self.routing == "recorded" else _EXPERTS[self.kind]

    @property
    def name(self) -> str:
        """As it is told.

        >>> Case("ll", 128, "fixed").name
        'll, 128 tokens, fixed'
        """
        return f"{self.kind}, {self.tokens} tokens, {self.routing}"


def cases() -> list[Case]:
    """In the order of what would be missed most, since time may run out."""
    return [
        Case("normal", 4096, "uniform"), Case("ll", 128, "uniform"), Case("normal", 4096, "fixed"),
        Case("ll", 128, "fixed"), Case("normal", 4096, "recorded"), Case("ll", 128, "recorded"),
        Case("normal", 8192, "uniform"), Case("normal", 8192, "recorded"),
    ]  # fmt: skip


def rank_counts(gpus: int) -> list[int]:
    """Ranks that a machine can have, the most first: what only it can show comes before time runs out.

    >>> rank_counts(8), rank_counts(3)
    ([8, 2, 4, 1], [2, 1])
    """
    there = [n for n in (1, 2, 4, 8) if n <= gpus]
    return sorted(there, key=lambda n: (n != there[-1], n == 1, n))


def share(now: float, end: float, left: int) -> float:
    """Until when the next of `left` rank counts may begin new cases: what one does not need, the others get.

    >>> share(100.0, 500.0, 4)
    200.0
    """
    return now + max(0.0, end - now) / max(1, left)


# ---- routings
def fixed(tokens: int, experts: int, topk: int, rank: int, ranks: int, *, seed: int) -> Routing:
    """Half of a token's experts on its own rank, half on one other, each other rank in turn.

    So each rank sends and receives `tokens` rows, however many ranks there are; of one rank it sends none.

    >>> [len(set(row // 8)) for row in fixed(3, 32, 4, 1, 4, seed=1).topk_idx]
    [2, 2, 2]
    """
    each, half = experts // ranks, topk // 2
    at = np.arange(tokens)
    other = (rank + 1 + at % (ranks - 1)) % ranks if ranks > 1 else np.full(tokens, rank)
    if ranks == 1:
        whole = uniform(tokens, experts, topk, seed=seed)
        return Routing(whole.topk_idx, whole.topk_weights, experts, {"router": "fixed", "seed": seed})
    here, there = uniform(tokens, each, half, seed=seed), uniform(tokens, each, topk - half, seed=seed + 1)
    idx = np.concatenate([here.topk_idx + rank * each, there.topk_idx + (other * each)[:, None]], 1)
    weights = np.concatenate([here.topk_weights, there.topk_weights], 1) / np.float32(2)
    return Routing(idx, weights, experts, {"router": "fixed", "seed": seed})


def routing(case: Case, rank: int, ranks: int, seed: int) -> Routing:
    """What one rank's tokens want."""
    if case.routing == "recorded":
        tape = recording.shipped()
        tile = tape.tile(case.tokens, 128, rank, seed)  # the fewest channels: only the choices are used
        return Routing(tile.topk_idx, tile.topk_weights, tape.num_experts, {"router": "recorded", "seed": seed})
    own = seed * 1000 + 2 * rank
    if case.routing == "fixed":
        return fixed(case.tokens, case.experts, TOPK, rank, ranks, seed=own)
    return uniform(case.tokens, case.experts, TOPK, seed=own)


def busiest(goes: Sequence[Any]) -> tuple[int, int]:
    """Rows of the busiest rank's busier direction, and the most rows that one rank gives or takes, its own too.

    `goes`: bool [tokens, ranks] of every rank.

    >>> busiest([np.array([[1, 1], [1, 0]], bool), np.array([[1, 0], [1, 1]], bool)])
    (2, 4)
    """
    rows = np.array([g.sum(0) for g in goes])  # from, to
    away = rows - np.diag(np.diag(rows))
    return (int(max(away.sum(0).max(), away.sum(1).max())), int(max(rows.sum(0).max(), rows.sum(1).max())))


# ---- what follows
def derived(row: dict[str, Any], peer_copy_gbs: float) -> dict[str, Any]:
    """A row of a rank program with rates, shares of floor and peer copy, and whether a goal that it has is met."""
    us, wire, ranks = row["us"], row["wire"], row["ranks"]
    floor, rate = wire / LINK_GBS / 1e3, wire / us / 1e3
    crossing = ranks > 1 and wire > 0
    found = {
        **row,
        "floor_us": floor if crossing else None,
        "wire_gbs": rate if crossing else None,
        "logical_gbs": row["logical"] / us / 1e3,
        "of_floor": 100 * floor / us if crossing else None,
        "of_peer_copy": 100 * rate / peer_copy_gbs if crossing and peer_copy_gbs else None,
        "goal": None,
        "goal_met": None,
    }
    operation = row["operation"]
    if operation in LL_GOALS and crossing:
        found |= {"goal": f"<= {LL_GOALS[operation]:g} µs", "goal_met": us <= LL_GOALS[operation]}
    elif not operation.startswith("nccl") and found["of_peer_copy"] is not None:
        found |= {"goal": f">= {COPY_GOAL:g} % of copy", "goal_met": found["of_peer_copy"] >= COPY_GOAL}
    return found


def flatness(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times over ranks at fixed wire bytes: an entry for each operation, shape and SMs measured from 2 ranks on.

    `us`: [[ranks, µs], …] ascending; `ratio`: of the most ranks' time to that of 2 ranks, None without either; `flat`:
    every time within 10 % of the one at 2 ranks.
    """
    times: dict[tuple[str, int, int | None], dict[int, float]] = {}
    for row in rows:
        if row["routing"] == "fixed" and row["ranks"] > 1 and not row["operation"].startswith("nccl"):
            # The SMs of low latency are all that the GPU has.
            times.setdefault((row["operation"], row["tokens"], row["sms"]), {})[row["ranks"]] = row["us"]
    found = []
    for (operation, tokens, sms), by_ranks in times.items():
        points = sorted(by_ranks.items())
        base = by_ranks.get(2)
        known = base is not None and len(points) > 1
        found.append({
            "operation": operation, "tokens": tokens, "sms": sms, "us": [list(point) for point in points],
            "ratio": points[-1][1] / base if known and base else None,
            "flat": all(abs(us / base - 1) <= FLAT for _, us in points) if known and base else None,
        })  # fmt: skip
    return found
