"""Dispatch and combine between hosts, whose HCA rides in the operation's grid, against NumPy, on the CPU runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from internode_checks import check_combined, check_received, check_round_trip, fresh_rows
from internode_rig import Rig
from moe import make_inputs

import rdmakit
from rdmakit.emu.cta_layout import HCA_QP, KEY_ENTRY
from rdmakit.ep.internode import LEAVERS_END
from rdmakit.errors import BadArgument, HangError, LaunchError
from rdmakit.explore.explorer import Explorer
from rdmakit.explore.mutants import run_mutants

RUNS = [
    *(("fast", 1, *shape) for shape in ((2, 1), (2, 2), (3, 1), (2, 3))),
    ("timed", 1, 2, 1),
    ("explore", 1, 2, 1),
    ("fast", 32, 2, 1),
]


@pytest.mark.parametrize(("policy", "lanes", "hosts", "local"), RUNS)
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_round_trip(policy, lanes, hosts, local, fp8, seed):
    rig = Rig(hosts, local, policy=policy, lanes=lanes, seed=seed)
    most = 10 if policy == "explore" or lanes == 32 else 40
    for turn in range(2 if lanes == 1 else 1):  # the second finds rings, counts and epochs where the first left them
        tokens = [max(most - 7 * rank * turn, 0) for rank in range(rig.ranks)]
        check_round_trip(rig, tokens, 256, 4 * rig.ranks, 4, seed + turn, fp8=fp8)


def test_one_engine_for_calls_of_every_shape(seed, rng):
    """Rows, choices, experts, SMs and formats change from call to call; rings are divided anew, nothing is cleaned."""
    rig = Rig(2, 1, seed=seed, channels=3, nvl=4 << 20, rdma=1 << 19)
    for turn in range(8):
        tokens = [int(n) for n in rng.integers(0, 50, 2)]
        hidden, experts = 128 * int(rng.integers(1, 6)), 2 * int(rng.integers(1, 20))
        topk = min(int(rng.integers(1, 9)), experts)
        check_round_trip(rig, tokens, hidden, experts, topk, seed + turn, fp8=bool(turn % 2),
                         alignment=int(rng.integers(1, 5)), num_sms=2 * int(rng.integers(2, 6)))  # fmt: skip


@pytest.mark.parametrize("tokens", [[0, 0], [1, 0], [0, 64], [64, 64]])
def test_uneven_and_empty(tokens, seed):
    check_round_trip(Rig(seed=seed), tokens, 128, 8, 2, seed)


@pytest.mark.parametrize("where", ["other host", "own host", "all masked"])
def test_extreme_routing(where, seed):
    rig = Rig(seed=seed, rdma=1 << 14)  # rings of few slots: they go round many times
    x, idx, weights = make_inputs([64, 64], 128, 8, 2, seed, masked=0)
    for rank, choices in enumerate(idx):
        first = 4 * (1 - rank) if where == "other host" else 4 * rank
        choices[:] = [-1, -1] if where == "all masked" else [first, first + 3]
        weights[rank][choices < 0] = 0
    sents = rig.layouts(idx, 8)
    rig.notify(sents, [64, 64], 8)
    rig.dispatch(sents, x, idx, weights)
    check_received(sents, x, idx, weights, 8)
    y, back = fresh_rows(sents, 128, seed), [sent.weights for sent in sents]
    out, out_weights = rig.combine(sents, y, back)
    check_combined(rig, sents, idx, y, out, out_weights, back, 8)


def test_routes_of_two_dispatches_take_turns(seed):
    rig = Rig(2, 2, seed=seed)
    cases = []
    for turn in range(2):
        x, idx, weights = make_inputs([20] * 4, 128, 16, 2, seed + turn)
        sents = rig.layouts(idx, 16)
        rig.notify(sents, [20] * 4, 16)
        rig.dispatch(sents, x, idx, weights)
        cases.append((sents, x, idx, weights))
    for turn in range(4):
        sents, x, idx, weights = cases[turn % 2]
        rig.dispatch(sents, x, cached=True)
        check_received(sents, x, idx, weights, 16, topk=False)
        y = fresh_rows(sents, 128, seed + turn)
        check_combined(rig, sents, idx, y, *rig.combine(sents, y), None, 16)


def test_the_count_of_leavers_starts_again(seed):
    rig = Rig(seed=seed)
    check_round_trip(rig, [20, 9], 128, 8, 2, seed)
    for engine in rig.engines:  # as after months
        rig.view(engine.queue_pairs.left, (1,), np.uint32)[0] += LEAVERS_END - 5 - engine._leavers
        engine._leavers = LEAVERS_END - 5
    check_round_trip(rig, [20, 9], 128, 8, 2, seed + 1)
    assert all(0 < engine._leavers < 1000 for engine in rig.engines)


def test_every_byte_crosses_through_the_queue_pairs(seed):
    """Counts of the HCA's: bytes that were sent are those of counts, rows and metadata."""
    rig = Rig(seed=seed)
    x, idx, weights = make_inputs([40, 40], 256, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    rig.notify(sents, [40, 40], 8)
    rig.dispatch(sents, x, idx, weights)
    for rank, engine in enumerate(rig.engines):
        pairs = engine.queue_pairs
        pods = rig.view(int(pairs.hca["qps"]), (int(pairs.hca["count"]),), HCA_QP)
        crossing = int(sents[rank].per_host[1 - rank])
        want = crossing * (512 + engine.shape.meta_stride) + engine.shape.notify_bytes
        assert int(pods["sent_bytes"].sum()) == want
        assert (pods["errors"] == 0).all() and pods["doorbells"].sum() > 0


# ---- what goes wrong ---------------------------------------------------------------------------------------------
def test_a_rank_that_does_not_take_part_is_named(seed):
    rig = Rig(seed=seed)
    _, idx, _ = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    rig.engines.pop()
    with pytest.raises(HangError, match="token counts from a rail peer"):
        rig.notify(sents[:1], [8], 8)


def test_another_layout_version_is_refused_by_the_kernels(seed):
    rig = Rig(seed=seed)
    _, idx, _ = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    for engine in rig.engines:
        engine.queue_pairs.handles["layout_version"] = 1
    with pytest.raises(LaunchError, match="layout"):
        rig.notify(sents, [8, 8], 8)


def test_a_key_that_does_not_fit_is_a_remote_access_error(seed):
    """A queue pair that fails says so where it is waited for, and the peer hangs no longer than its time."""
    rig = Rig(seed=seed)
    _, idx, _ = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    pod = rig.view(int(rig.engines[0].queue_pairs.hca["qps"]), (1,), HCA_QP)[0]
    keys = rig.view(int(pod["keys"]["entries"]), (int(pod["keys"]["count"]),), KEY_ENTRY)
    keys[3]["len"] = 64
    with pytest.raises(HangError, match="token counts from a rail peer"):
        rig.notify(sents, [8, 8], 8)
    pods = rig.view(int(rig.engines[0].queue_pairs.hca["qps"]), (1,), HCA_QP)
    assert pods[0]["errors"] == 1 and pods[0]["state"] == 6


def refused(text, call):
    with pytest.raises(BadArgument, match=text) as caught:
        call()
    assert caught.value.rule and caught.value.remedy


def test_bad_calls_name_value_rule_and_remedy(seed):
    rig = Rig(seed=seed, max_tokens=16, rdma=1 << 14, nvl=1 << 16)
    _, idx, _ = make_inputs([17, 3], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    refused("too many tokens for one call between hosts", lambda: rig.notify(sents, [17, 3], 8))
    refused("experts that do not fit", lambda: rig.layouts(idx, 7))
    engine = rig.engines[0]
    route = sents[0].route
    for text, row_bytes, topk, rows in (
        ("rows too long for the rings", 8192, 0, 1),
        ("rows of a size", 24, 0, 1),
        ("more rows than the Buffer has room for", 512, 0, 999),
        ("too many choices", 512, 33, 1),
    ):
        given = (route, 0, row_bytes, 0, 0, 0, 0, topk, None, rows, 6)
        refused(text, lambda given=given: engine.dispatch(*given))
    refused("no room for what a dispatch brings", lambda: engine.receive_block(1000, 512, 0, 0))
    refused("no such hosts", lambda: Rig(1, 2, seed=seed))


@pytest.mark.parametrize("options", [{"host": True}, {"again": True, "tokens": 3}], ids=["host", "again"])
def test_explored(options):
    assert Explorer("internode", **options).run(1000).ok


def test_rings_that_are_divided_anew_have_to_be_empty():
    """Without the wait for that, some schedule overwrites a slot that has not been read."""
    text = Path(rdmakit.get_include(), "rdmakit", "channel.cuh").read_text(encoding="utf-8")
    place = "rdmakit/channel.cuh", text[: text.index("wait_signal(c.head, begin")].count("\n") + 1
    scene = Explorer("internode", again=True, tokens=3)
    run = run_mutants([scene], budget=4000, only=lambda m: (m.site.file, m.site.line) == place)
    assert run.total == len(run.killed) == 1, str(run)
