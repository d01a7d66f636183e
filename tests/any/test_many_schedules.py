"""Many inputs and seeds: schedules change, results may not. A slice here, the rest behind `make explore`.

Policy explore gets small worlds here: the scenarios ep-* of rdmakit.explore take the same kernels through thousands of
its schedules (test_explore_*.py).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from moe import failures, make_inputs

import rdmakit
from rdmakit.ep import reference, verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer

MANY = [10, pytest.param(200, marks=pytest.mark.explore)]


@pytest.mark.parametrize("schedules", MANY)
@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_normal(policy, schedules, seed):
    """Rings of 4 slots, chunks of 2: credits run out all the time."""
    for world_seed in range(seed, seed + schedules):
        rng = np.random.default_rng(world_seed)
        hosts, gpus = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        ranks, experts = hosts * gpus, 4 * hosts * gpus
        world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, policy=policy, seed=world_seed)
        buffer = NormalBuffer(world, hidden=128, topk=2, experts=experts, max_tokens=24, channels=2, slots=4, chunk=2)
        for turn in range(2):
            tokens = [int(n) for n in rng.integers(0, 25, ranks)]
            x, idx, weights = make_inputs(tokens, 128, experts, 2, world_seed + turn)
            got = buffer.dispatch(x, idx, weights)
            assert not failures(verify.check_dispatched(got, x, idx, weights, experts)), world_seed
            out, _ = buffer.combine([g.recv_x for g in got], [g.handle for g in got])
            y = [g.recv_x for g in got]
            assert not failures(verify.check_combined(out, y, idx, experts, gpus)), world_seed


@pytest.mark.parametrize("schedules", MANY)
@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_low_latency(policy, schedules, seed):
    for world_seed in range(seed, seed + schedules):
        rng = np.random.default_rng(world_seed)
        hosts, gpus = (int(rng.integers(1, 4)), int(rng.integers(1, 3))) if policy != "explore" else (2, 1)
        ranks, experts = hosts * gpus, (4 if policy != "explore" else 1) * hosts * gpus
        world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, policy=policy, seed=world_seed)
        buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=experts, max_tokens=8)
        for turn in range(3):
            tokens = [int(n) for n in rng.integers(0, 9, ranks)]
            x, idx, weights = make_inputs(tokens, 128, experts, 2, world_seed + turn)
            got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
            assert not failures(verify.check_low_latency(got, x, idx, experts, 8, False)), world_seed
            y = [rng.standard_normal(g.packed_recv_x.shape).astype(ml_dtypes.bfloat16) for g in got]
            out, _ = buffer.combine(y, handles, idx, weights)
            for r, mine in enumerate(out):
                want = reference.low_latency_combine(y, got, idx[r], weights[r], r, experts)
                assert want.tobytes() == mine.tobytes(), (world_seed, r)
