"""Large worlds with control traffic only: every count, place and choice is right though no payload moves."""

from __future__ import annotations

import pytest
from moe import failures, make_inputs

import rdmakit
from rdmakit.ep import verify
from rdmakit.ep.normal import NormalBuffer


@pytest.mark.parametrize(
    ("hosts", "gpus", "tokens"),
    [
        (8, 8, 32),
        pytest.param(32, 8, 32, marks=pytest.mark.explore),
        pytest.param(64, 1, 32, marks=pytest.mark.explore),
    ],
)
def test_control_traffic(hosts, gpus, tokens, seed):
    ranks = hosts * gpus
    world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, seed=seed)
    world.copy_payload = False
    buffer = NormalBuffer(
        world,
        hidden=7168,
        topk=8,
        experts=max(256, ranks),
        max_tokens=tokens,
        capacity=tokens * 16,
        channels=2,
        slots=16,
        chunk=8,
    )
    x, idx, weights = make_inputs([tokens] * ranks, 7168, max(256, ranks), 8, seed)
    got = buffer.dispatch(x, idx, weights)
    for r in range(0, ranks, max(1, ranks // 16)):
        assert not failures(verify.check_routing(got[r], idx, weights, r, max(256, ranks)))
    buffer.combine([buffer.combine_rows(r, g.handle) for r, g in enumerate(got)], [g.handle for g in got])
    assert sum(s.context.counters["errors"] for s in buffer.mesh.sides) == 0
