"""Inputs and worlds for the MoE tests: fresh random tokens and choices; kernels run by warps or by threads."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import rdmakit
from rdmakit.emu.compile import stock_path
from rdmakit.ep import routing

# policy, lanes a fibre, hosts, GPUs a host. Thousands of fibres whose every access is a choice take a minute and are
# for `make explore`; the scenarios ep-* of rdmakit.explore go through many schedules of fewer.
RUNS = [
    *((policy, 1, *shape) for policy in ("fast", "timed", "explore") for shape in ((1, 2), (2, 1), (2, 2))),
    *(("fast", 32, *shape) for shape in ((1, 2), (2, 1), (2, 2))),
    pytest.param("explore", 32, 2, 1, marks=pytest.mark.explore),
]


class ThreadWorld(rdmakit.World):
    """A world whose stock kernels run with a fibre for each thread: lanes diverge, shuffle and vote for real."""

    def stock_kernel(self, name: str) -> Any:
        path = stock_path(name)
        return self.compile(path.read_text(), lanes=32, name=path.name).get_function(name)


def make_world(lanes: int, **options: Any) -> rdmakit.World:
    return (rdmakit.World if lanes == 1 else ThreadWorld)(**options)


def make_inputs(
    tokens: list[int], hidden: int, experts: int, topk: int, seed: int, masked: float = 0.1
) -> tuple[list[Any], list[Any], list[Any]]:
    """x, topk_idx, topk_weights of each rank, from one seed; some choices are masked."""
    chosen = [
        routing.uniform(n, num_experts=experts, top_k=topk, seed=seed + 7 * r).masked(masked, seed=seed + r)
        for r, n in enumerate(tokens)
    ]
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, hidden), np.float32).astype(ml_dtypes.bfloat16) for n in tokens]
    return x, [c.topk_idx for c in chosen], [c.topk_weights for c in chosen]


def failures(checks: Any) -> list[Any]:
    found = list(checks)
    assert found, "nothing was checked"
    return [c for c in found if not c.ok]
