"""Normal dispatch and combine against NumPy, bit for bit: shapes, formats, policies, skew, reuse, and bad input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from moe import RUNS, failures, make_inputs, make_world

import rdmakit
from rdmakit.ep import abi, recording, reference, verify
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument, CompletionError, RdmakitError


def round_trip(world, buffer, x, idx, weights, experts, seed):
    """Dispatch, poison nothing that is not overwritten, combine fresh rows; returns all checks that fail."""
    got = buffer.dispatch(x, idx, weights)
    bad = failures(verify.check_dispatched(got, x, idx, weights, experts))
    rng = np.random.default_rng(seed + 1)
    y = [
        rng.standard_normal((g.handle.received, buffer.hidden), np.float32).astype(ml_dtypes.bfloat16)
        for g in got
    ]
    back = [g.recv_topk_weights for g in got]
    out, out_weights = buffer.combine(y, [g.handle for g in got], back)
    bad += failures(verify.check_combined(out, y, idx, experts, buffer.local_ranks, out_weights, back))
    return got, bad


def poison(buffer):
    """Fill what is received into with rubbish, so that a row that nobody writes shows."""
    for side in buffer.mesh.sides:
        for name in (
            "recv_x",
            "recv_scales",
            "recv_topk",
            "recv_weights",
            "recv_source",
            "ring_payload",
            "ring_meta",
        ):
            size = min(buffer.layout.size[name], 1 << 20)
            side.heap.view(name, np.uint8, (size,)).fill(0xA5)


@pytest.mark.parametrize(("policy", "lanes", "hosts", "gpus"), RUNS)
@pytest.mark.parametrize("fp8", [False, True])
def test_round_trip(policy, lanes, hosts, gpus, fp8, seed):
    ranks, experts = hosts * gpus, 8 * hosts * gpus
    world = make_world(lanes, hosts=hosts, gpus_per_host=gpus, policy=policy, seed=seed)
    channels = 4 if lanes == 1 else 2
    most, slots = (8, 8) if policy == "explore" else (40, 16)
    buffer = NormalBuffer(
        world, hidden=256, topk=4, experts=experts, max_tokens=most, channels=channels, slots=slots, chunk=4
    )
    for turn in range(2 if lanes == 1 else 1):  # the second finds rings and epochs where the first left them
        x, idx, weights = make_inputs([max(most - 7 * r * turn, 0) for r in range(ranks)], 256, experts, 4, seed + turn)
        sent = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
        poison(buffer)
        _, bad = round_trip(world, buffer, sent, idx, weights, experts, seed)
        assert not bad


@pytest.mark.parametrize("tokens", [[0, 0, 0, 0], [1, 0, 0, 0], [0, 37, 3, 90], [90, 90, 90, 90]])
def test_uneven_and_empty(tokens, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)
    buffer = NormalBuffer(world, hidden=128, topk=8, experts=32, max_tokens=90, channels=3, slots=16, chunk=8)
    _, bad = round_trip(world, buffer, *make_inputs(tokens, 128, 32, 8, seed), 32, seed)
    assert not bad


@pytest.mark.parametrize("where", ["one expert", "own rank", "all masked"])
def test_extreme_routing(where, seed):
    world = rdmakit.World(hosts=3, gpus_per_host=1, seed=seed)
    buffer = NormalBuffer(world, hidden=128, topk=2, experts=12, max_tokens=64, channels=2, slots=8, chunk=4)
    x, idx, weights = make_inputs([64] * 3, 128, 12, 2, seed, masked=0)
    for r, choices in enumerate(idx):
        choices[:] = {"one expert": [7, -1], "own rank": [4 * r, 4 * r + 3], "all masked": [-1, -1]}[where]
        weights[r][choices < 0] = 0
    _, bad = round_trip(world, buffer, x, idx, weights, 12, seed)
    assert not bad


@pytest.mark.parametrize(("hosts", "gpus"), [(1, 1), (5, 1), (16, 1), (3, 5), (8, 8)])
def test_any_rank_count(hosts, gpus, seed):
    """Up to 64 ranks with payload; larger worlds run control traffic only (test_ep_scale.py)."""
    ranks = hosts * gpus
    world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, seed=seed)
    buffer = NormalBuffer(
        world, hidden=128, topk=4, experts=4 * ranks, max_tokens=24, channels=2, slots=8, chunk=2
    )
    _, bad = round_trip(
        world, buffer, *make_inputs([24] * ranks, 128, 4 * ranks, min(4, 4 * ranks), seed), 4 * ranks, seed
    )
    assert not bad


@pytest.mark.parametrize("hidden", [128, 384, 2048, 7168])
def test_any_multiple_of_128(hidden, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)
    buffer = NormalBuffer(world, hidden=hidden, topk=8, experts=64, max_tokens=48, channels=2, slots=16)
    x, idx, weights = make_inputs([48] * 4, hidden, 64, 8, seed)
    for sent in (x, [reference.quantize_fp8(rows) for rows in x]):
        poison(buffer)
        assert not round_trip(world, buffer, sent, idx, weights, 64, seed)[1]


def test_recorded_routing_on_every_kind_of_port(seed):
    tape = recording.shipped()
    for lag in ("none", "hash", "affinity"):
        world = rdmakit.World(hosts=2, gpus_per_host=2, ports=2, lag=lag, seed=seed)
        buffer = NormalBuffer(world, hidden=512, topk=8, experts=64, max_tokens=128, channels=4)
        tiles = [tape.tile(128, 512, r, seed) for r in range(4)]
        arguments = [t.x for t in tiles], [t.topk_idx for t in tiles], [t.topk_weights for t in tiles]
        _, bad = round_trip(world, buffer, *arguments, 64, seed)
        assert not bad
        sent = buffer.mesh.port_bytes()
        assert all(sent[r, 1] + sent[r, 2] > 0 for r in range(4))
        if lag != "hash":  # there the hash decides
            assert all(sent[r, port] > 0 for r in range(4) for port in (1, 2)), sent


def test_handle_reuse_is_the_backward_pass(seed):
    """A cached dispatch moves new rows along the old routing without another exchange of counts."""
    world = rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)
    buffer = NormalBuffer(world, hidden=256, topk=4, experts=32, max_tokens=50, channels=2)
    x, idx, weights = make_inputs([50] * 4, 256, 32, 4, seed)
    notified = lambda: [s.heap.view("notify_tail", np.uint64, (2,)).sum() for s in buffer.mesh.sides]  # noqa: E731
    handles = [g.handle for g in buffer.dispatch(x, idx, weights)]
    before = notified()
    assert before == [1, 1, 1, 1]
    gradients, _, _ = make_inputs([50] * 4, 256, 32, 4, seed + 99)
    got = buffer.dispatch(gradients, idx, weights, handles)
    assert notified() == before
    assert not failures(verify.check_dispatched(got, gradients, idx, weights, 32))
    assert not round_trip(world, buffer, x, idx, weights, 32, seed)[1], "a fresh dispatch after a cached one"


def test_same_seed_same_run(seed):
    """Bit for bit, the clock and the schedule included; among other seeds one has another schedule, all the same
    result."""

    def run(world_seed):
        world = rdmakit.World(hosts=2, gpus_per_host=2, policy="timed", seed=world_seed)
        buffer = NormalBuffer(world, hidden=256, topk=4, experts=32, max_tokens=64, channels=2)
        x, idx, weights = make_inputs([64] * 4, 256, 32, 4, seed)
        got, bad = round_trip(world, buffer, x, idx, weights, 32, seed)
        assert not bad
        return world.now_ns, dict(world.counters), [g.recv_x.tobytes() for g in got]

    *schedule, rows = run(seed)
    assert run(seed) == (*schedule, rows)
    others = []
    for other in range(seed + 1, seed + 9):  # two seeds may by chance make the same one
        *different, same_rows = run(other)
        assert same_rows == rows
        others.append(different)
        if different != schedule:
            break
    assert any(different != schedule for different in others)


def test_ports_conserve_bytes(seed):
    world = rdmakit.World(hosts=3, gpus_per_host=1, policy="timed", seed=seed)
    buffer = NormalBuffer(world, hidden=256, topk=4, experts=24, max_tokens=64, channels=2)
    round_trip(world, buffer, *make_inputs([64] * 3, 256, 24, 4, seed), 24, seed)
    counters = [p.counters for s in buffer.mesh.sides for p in s.context.ports]
    assert sum(c["xmit_bytes"] for c in counters) == sum(c["rcv_bytes"] for c in counters) > 0


# ---- bad input ---------------------------------------------------------------------------------------------------
@pytest.fixture
def small():
    world = rdmakit.World(hosts=2, gpus_per_host=1)
    return NormalBuffer(world, hidden=256, topk=2, experts=8, max_tokens=16, channels=2)


def arguments(seed=1):
    return make_inputs([16, 16], 256, 8, 2, seed, masked=0)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x, i, w: x.__setitem__(0, x[0].astype(np.float32)), "float32"),
        (lambda x, i, w: x.__setitem__(0, x[0][:, ::2]), "contiguous"),
        (lambda x, i, w: x.__setitem__(0, np.ascontiguousarray(x[0][:, :128])), "256"),
        (lambda x, i, w: x.__setitem__(1, np.concatenate([x[1], x[1]])), "16"),
        (lambda x, i, w: i[0].__setitem__((3, 1), 8), "8"),
        (lambda x, i, w: i[0].__setitem__((3, 1), i[0][3, 0]), "3"),
        (lambda x, i, w: i.__setitem__(0, i[0].astype(np.float32)), "float32"),
        (lambda x, i, w: w.__setitem__(0, w[0].astype(np.float64)), "float64"),
        (lambda x, i, w: w.__setitem__(0, w[0][:3]), "3"),
        (lambda x, i, w: x.pop(), "2"),
    ],
)
def test_bad_input_names_value_and_rule(small, spoil, says):
    x, idx, weights = arguments()
    spoil(x, idx, weights)
    with pytest.raises(BadArgument) as caught:
        small.dispatch(x, idx, weights)
    assert says in str(caught.value)
    assert caught.value.rule
    x, idx, weights = arguments()  # and nothing is left behind: the buffer still works
    assert not round_trip(small.world, small, x, idx, weights, 8, 1)[1]


def test_counts_over_the_buffer():
    """The receiver cannot know before the exchange; the device finds it, and the host says which rank and how much."""
    world = rdmakit.World(hosts=2, gpus_per_host=1)
    buffer = NormalBuffer(world, hidden=128, topk=1, experts=2, max_tokens=16, capacity=20, channels=2)
    x, idx, weights = make_inputs([16, 16], 128, 2, 1, 1, masked=0)
    for choices in idx:
        choices[:] = 0
    with pytest.raises(BadArgument) as caught:
        buffer.dispatch(x, idx, weights)
    assert "20" in str(caught.value) and "32" in str(caught.value)
    x, idx, weights = make_inputs([10, 10], 128, 2, 1, 1, masked=0)
    assert not round_trip(world, buffer, x, idx, weights, 2, 1)[1], "what fits still goes through"


def test_a_cut_cable_is_named():
    """Not a bare hang: which rank cannot reach which, by what syndrome, and which port is down."""
    world = rdmakit.World(hosts=2, gpus_per_host=1, seed=1)
    buffer = NormalBuffer(world, hidden=128, topk=2, experts=8, max_tokens=16, channels=2)
    world.set_port_up(0, 0, 2, False)
    with pytest.raises(CompletionError) as caught:
        buffer.dispatch(*make_inputs([16, 16], 128, 8, 2, 1))
    assert caught.value.wc_status == "RETRY_EXC_ERR"
    assert "channel 1" in str(caught.value) and "rank" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": 100}, "128"),
        ({"experts": 7}, "7"),
        ({"slots": 12}, "12"),
        ({"slots": 8, "chunk": 8}, "chunk"),
        ({"channels": 0}, "channels"),
        ({"topk": 0}, "topk"),
    ],
)
def test_bad_buffer(change, says):
    world = rdmakit.World(hosts=2, gpus_per_host=1)
    with pytest.raises(BadArgument) as caught:
        NormalBuffer(world, **({"hidden": 128, "topk": 1, "experts": 2, "max_tokens": 4} | change))
    assert says in str(caught.value)


def test_combine_refuses_rows_of_another_shape(small):
    x, idx, weights = arguments()
    got = small.dispatch(x, idx, weights)
    with pytest.raises(BadArgument):
        small.combine([g.recv_x[:-1] for g in got], [g.handle for g in got])


def test_handles_belong_to_their_rank_routing_and_buffer(small):
    x, idx, weights = arguments()
    handles = [g.handle for g in small.dispatch(x, idx, weights)]
    other = arguments(seed=2)
    with pytest.raises(BadArgument, match="another dispatch"):
        small.dispatch(other[0], other[1], other[2], handles)
    with pytest.raises(BadArgument, match="rank 1"):
        small.dispatch(x, idx, weights, handles[::-1])
    rows = [small.combine_rows(r, h) for r, h in enumerate(handles)]
    with pytest.raises(BadArgument, match="order of the ranks"):
        small.combine(rows[::-1], handles[::-1])
    twin = NormalBuffer(rdmakit.World(hosts=2), hidden=256, topk=2, experts=8, max_tokens=16, channels=2)
    with pytest.raises(BadArgument, match="another buffer"):
        twin.combine(rows, handles)
    assert not round_trip(small.world, small, x, idx, weights, 8, 1)[1]


def test_cached_dispatches_of_two_routings_take_turns(seed):
    """Each rewrites the table of rows that the other left."""
    world = rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)
    buffer = NormalBuffer(world, hidden=128, topk=2, experts=16, max_tokens=20, channels=2)
    first, second = (make_inputs([20] * 4, 128, 16, 2, seed + n) for n in (1, 2))
    handles = [[g.handle for g in buffer.dispatch(*given)] for given in (first, second)]
    for turn in range(4):
        given, held = ((first, handles[0]), (second, handles[1]))[turn % 2]
        got = buffer.dispatch(*given, held)
        assert not failures(verify.check_dispatched(got, *given, 16))
        out, _ = buffer.combine([g.recv_x for g in got], held)
        assert not failures(verify.check_combined(out, [g.recv_x for g in got], given[1], 16, 2))


@pytest.mark.parametrize("what", ["rank", "rails"])
def test_another_layout_version_is_refused_by_the_kernels(small, what):
    if what == "rank":
        small.rank_pods[0]["layout_version"] = 7
    else:
        for kept in small.mesh.kept(abi.CHANNEL_HANDLE):
            kept["qp"]["layout_version"] = 7
    with pytest.raises(RdmakitError, match="layout"):
        small.dispatch(*arguments())
