"""What the kernels are given: which experts each token of each rank wants, and the sizes that published figures were
measured with.

Leans on ep.routing, ep.recording, ep.heap and puts. One routing a rank, from one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.ep import recording, routing
from rdmakit.ep.heap import sixteens
from rdmakit.ep.layout import check_sizes
from rdmakit.ep.normal_memory import NormalShape
from rdmakit.errors import BadArgument
from rdmakit.model.preset import Preset
from rdmakit.model.puts import RING, rows_of_a_put
from rdmakit.model.traffic import low_latency_traffic, normal_traffic

__all__ = ["ROUTINGS", "Workload"]

ROUTINGS = ("published", "uniform", "recorded", "zipf", "group-limited")
HIDDEN = 7168  # DeepSeek-V3, as DeepEP's own tests
_GROUPS = 4  # node groups that a token may go to, in DeepEP's tests


@dataclass(frozen=True)
class Workload:
    """`kernel` "normal" or "ll", `op` "dispatch" or "combine", for every rank of a cluster of `hosts` × `local` GPUs.

    `routing`: "published" is DeepEP's test (scores by chance, experts of at most 4 hosts), "uniform" any experts,
    "recorded" a real model's, "zipf" favours some, "group-limited" is DeepSeek-V3's gate. BadArgument for sizes that
    do not divide.

    `slots` of a ring, `chunk` of them a put; None is what suits the operation at a step of the ladder (`at_step`).
    """

    kernel: str
    op: str
    hosts: int
    local: int
    tokens: int
    routing: str = "published"
    hidden: int = HIDDEN
    channels: int = 10
    seed: int = 0
    slots: int = RING
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kernel", self.kernel, ("normal", "ll")),
            ("op", self.op, ("dispatch", "combine")),
            ("routing", self.routing, ROUTINGS),
        ):
            if value not in allowed:
                raise BadArgument(
                    f"no such {name}", value=value, rule="one of " + ", ".join(allowed), remedy="choose one"
                )
        if not isinstance(self.tokens, int) or not 1 <= self.tokens <= 1 << 16:
            raise BadArgument(
                "tokens of a rank make no workload", value=self.tokens, rule="1 … 65536", remedy="4096 or 128"
            )
        if self.experts % self.ranks:
            raise BadArgument(
                "experts cannot be split over the ranks",
                value=f"{self.experts} over {self.ranks}",
                rule="ranks divide experts",
                remedy="other hosts or GPUs, or another routing",
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise BadArgument(
                "seed does not fit", value=self.seed, rule="at least 0", remedy="any whole number from 0 on"
            )
        if self.kernel == "normal":
            self.shape()
        else:
            check_sizes(self.hidden, channels=self.channels)

    @property
    def ranks(self) -> int:
        return self.hosts * self.local

    @property
    def experts(self) -> int:
        return recording.shipped().num_experts if self.routing == "recorded" else 256

    @property
    def topk(self) -> int:
        return 8

    def choices(self) -> list[NDArray[np.int64]]:
        """topk_idx `[tokens, 8]` of each rank."""
        n, e, k = self.tokens, self.experts, self.topk
        seeds = [self.seed * 100_003 + rank for rank in range(self.ranks)]
        if self.routing == "recorded":
            tape = recording.shipped().topk_idx
            begin = int(np.random.default_rng(self.seed).integers(len(tape)))
            return [tape[np.arange(begin + r * n, begin + (r + 1) * n) % len(tape)] for r in range(self.ranks)]
        if self.routing == "zipf":
            return [routing.zipf(n, e, k, seed=s).topk_idx for s in seeds]
        if self.routing == "group-limited":
            return [routing.group_limited(n, e, k, seed=s).topk_idx for s in seeds]
        if self.routing == "published" and self.kernel == "normal" and self.hosts > _GROUPS:
            return [
                routing.group_limited(n, e, k, num_groups=self.hosts, top_groups=_GROUPS, spread=0.0, seed=s).topk_idx
                for s in seeds
            ]
        return [routing.uniform(n, e, k, seed=s).topk_idx for s in seeds]

    def at_step(self, step: int) -> Workload:
        """With as many rows a put as suit that step of the ladder, unless they were chosen; a ring holds two puts."""
        if self.chunk is not None:
            return self
        return replace(self, chunk=min(rows_of_a_put(self.op, self.ranks, step), max(1, self.slots // 2)))

    # ---- sizes
    @property
    def row_bytes(self) -> int:
        """Of a row: dispatch is FP8 with its scales, combine BF16."""
        return self.hidden + 4 * (self.hidden // 128) if self.op == "dispatch" else 2 * self.hidden

    def shape(self, capacity: int | None = None) -> NormalShape:
        """Of a NormalBuffer for it."""
        return NormalShape(
            self.hosts,
            self.local,
            self.hidden,
            self.topk,
            self.experts,
            self.tokens,
            capacity or self.tokens * self.ranks,
            self.channels,
            self.slots,
            1 if self.chunk is None else self.chunk,  # of no matter before a step is known
        )

    def traffic(self, choices: list[Any] | None = None, *, exchange: bool = True) -> NDArray[np.int64]:
        """Payload bytes `[rank, peer, channel]`."""
        chosen = self.choices() if choices is None else choices
        if self.kernel == "normal":
            return normal_traffic(chosen, self.shape(), combine=self.op == "combine", exchange=exchange)
        header = sixteens(4 * (1 + self.topk))  # ll_header_bytes, ll.cuh
        message = header + sixteens(self.row_bytes) if self.op == "dispatch" else 2 * self.hidden
        return low_latency_traffic(
            chosen,
            experts=self.experts,
            local_ranks=self.local,
            qps=self.channels,
            message_bytes=message,
            combine=self.op == "combine",
        )


def sized_for(preset: Preset, kernel: str, op: str, **options: Any) -> Workload:
    """The workload of the published figures on a cluster: 4096 tokens a rank (normal), 128 (low latency)."""
    options.setdefault("tokens", 4096 if kernel == "normal" else 128)
    return Workload(kernel, op, preset.count("hosts"), preset.count("gpus_per_host"), **options)
