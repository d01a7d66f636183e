"""Whose memory combine reads, what it copies, what it says when there is no room, and how long a heap lives."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from moe import make_inputs
from nvlink_checks import expected
from nvlink_rig import Rig, address

from rdmakit.ep import reference
from rdmakit.errors import BadArgument

RANKS, TOKENS, HIDDEN, EXPERTS, TOPK = 2, [9, 6], 256, 4, 3


@pytest.fixture
def sent(seed):
    """A rig, what each rank has received, and what that should be."""
    rig = Rig(RANKS, seed=seed)
    x, idx, weights = make_inputs(TOKENS, HIDDEN, EXPERTS, TOPK, seed)
    sents = rig.layouts(idx, EXPERTS)
    rig.notify(sents, EXPERTS)
    rig.dispatch(sents, x, idx, weights, EXPERTS)
    return rig, sents, expected(x, idx, weights, EXPERTS)


def combine(rig, sents, rows, weights):
    """`rows`, `weights`: arrays outside the heap, or None for what came where it came."""
    out, sums, kept = [], [], []
    for r, (engine, one) in enumerate(zip(rig.engines, sents, strict=True)):
        out.append(rig.array((one.tokens, HIDDEN), one.x.dtype))
        sums.append(rig.array((one.tokens, TOPK), np.float32))
        kept.append(engine.combine(
            one.block.x if rows is None else address(rows[r]), one.rows, HIDDEN,
            one.block.weights if weights is None else address(weights[r]), TOPK, address(one.positions),
            address(one.prefix), one.tokens, address(out[r]), address(sums[r]), 0, 0, 3,
        ))  # fmt: skip
    return out, sums, kept


@pytest.mark.parametrize("rows_outside", [False, True])
@pytest.mark.parametrize("weights_outside", [False, True])
def test_only_what_lies_outside_is_copied(sent, rows_outside, weights_outside):
    rig, sents, want = sent
    before = [engine.pool.used for engine in rig.engines]
    rows = [rig._given(truth.recv_x) for truth in want] if rows_outside else None
    weights = [rig._given(truth.recv_topk_weights) for truth in want] if weights_outside else None
    out, sums, kept = combine(rig, sents, rows, weights)
    for r, engine in enumerate(rig.engines):
        least = sents[r].rows * (2 * HIDDEN * rows_outside + 4 * TOPK * weights_outside)
        assert least <= engine.pool.used - before[r] <= least + 2 * 128
    rig.run()
    handles = [truth.handle for truth in want]
    for r in range(RANKS):
        total, total_weights = reference.combine(
            [truth.recv_x for truth in want], handles, r, TOKENS[r], [truth.recv_topk_weights for truth in want]
        )
        assert np.array_equal(out[r].view(np.uint16), total.view(np.uint16)) and np.array_equal(sums[r], total_weights)
    del kept
    assert [engine.pool.used for engine in rig.engines] == before


def test_nothing_of_no_rows_is_copied(seed):
    """A rank that has received nothing combines rows that lie nowhere in particular."""
    rig = Rig(RANKS, seed=seed)
    x, idx, weights = make_inputs(TOKENS, HIDDEN, EXPERTS, TOPK, seed)
    idx = [np.where(chosen < EXPERTS // RANKS, chosen, -1) for chosen in idx]  # experts of rank 0 only
    sents = rig.layouts(idx, EXPERTS)
    rig.notify(sents, EXPERTS)
    rig.dispatch(sents, x, idx, weights, EXPERTS)
    want = expected(x, idx, weights, EXPERTS)
    assert sents[1].rows == 0
    elsewhere = [rig._given(want[0].recv_x), rig.array((1, HIDDEN), x[0].dtype)]
    used = rig.engines[1].pool.used
    out, _, kept = combine(rig, sents, elsewhere, [rig._given(want[0].recv_topk_weights), rig.array(4, np.float32)])
    assert rig.engines[1].pool.used == used and not kept[1]
    rig.run()
    for r in range(RANKS):
        total, _ = reference.combine([truth.recv_x for truth in want], [truth.handle for truth in want], r, TOKENS[r])
        assert np.array_equal(out[r].view(np.uint16), total.view(np.uint16))


def test_no_room_for_the_copy_is_said_before_anything_happens(sent):
    rig, sents, want = sent
    engine, launched = rig.engines[0], []
    filling = engine.receive_block(1, engine.largest_block - 256, 0, 0)
    engine.link.launch = lambda *arguments, **_: launched.append(arguments)
    engine.link.copy = engine.link.launch
    used = engine.pool.used
    rows, weights = [rig._given(truth.recv_x) for truth in want], [rig._given(want[0].recv_topk_weights)] * RANKS
    nbytes = 2 * HIDDEN * sents[0].rows, 4 * TOPK * sents[0].rows
    with pytest.raises(BadArgument, match=f"rows {nbytes[0]}, weights {nbytes[1]}") as caught:
        combine(rig, sents, rows, weights)
    assert "recv_x" in caught.value.remedy and "num_nvl_bytes" in caught.value.remedy
    assert engine.pool.used == used and not launched
    del filling
    assert engine.largest_block > sum(nbytes)


def test_a_block_keeps_the_heap_beyond_close():
    """As ep/engine.py has it: blocks whose owner still lives keep their memory."""
    rig = Rig(1)
    (engine,) = rig.engines

    class Owner:
        pass

    owner = engine.link.heap_owner = Owner()
    gone = weakref.ref(owner)
    block = engine.receive_block(4, 256, 0, 0)
    del owner
    engine.link.heap_owner = None  # as PeerLink.close does
    engine.close()
    gc.collect()
    assert gone() is not None
    del block
    assert gone() is None
    engine.close()
