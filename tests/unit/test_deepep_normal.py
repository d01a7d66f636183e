"""Buffer's normal calls: what DeepEP V1's get_dispatch_layout, dispatch and combine return, against the NumPy truth."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
from deepep_rig import Rig, other_rows, to_numpy, to_torch  # noqa: E402

from rdmakit.ep import reference  # noqa: E402
from rdmakit.ep.config import Config  # noqa: E402
from rdmakit.ep.layout import get_dispatch_layout  # noqa: E402
from rdmakit.ep.numerics import quantize_fp8  # noqa: E402
from rdmakit.ep.routing import uniform  # noqa: E402
from rdmakit.errors import BadState  # noqa: E402

TOKENS, HIDDEN, EXPERTS, TOPK = (5, 7), 256, 8, 3


class Case:
    """Two ranks' tokens; some choices are masked."""

    def __init__(self, rng, fp8=False):
        routes = [uniform(n, EXPERTS, TOPK, seed=int(rng.integers(1 << 30))).masked(0.2, seed=1) for n in TOKENS]
        self.idx = [route.topk_idx for route in routes]
        self.weights = [route.topk_weights for route in routes]
        rows = [to_numpy(torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float32)).bfloat16()) for n in TOKENS]
        self.x = [quantize_fp8(each) for each in rows] if fp8 else rows

    def tensors(self, rank):
        x = self.x[rank]
        x = tuple(map(to_torch, x)) if isinstance(x, tuple) else to_torch(x)
        return x, to_torch(self.idx[rank]), to_torch(self.weights[rank])

    def layout(self, buffer, rank):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(to_torch(self.idx[rank]), EXPERTS)
        return {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}

    def dispatch(self, buffer, rank, **further):
        x, idx, weights = self.tensors(rank)
        topk = {"topk_idx": idx, "topk_weights": weights} if further.pop("topk", True) else {}
        return buffer.dispatch(x, **self.layout(buffer, rank), **topk, **further)

    def truth(self, rank):
        return reference.dispatch(self.x, self.idx, self.weights, rank, EXPERTS)


@pytest.fixture
def rig(monkeypatch):
    made = Rig(monkeypatch)
    made.make(num_nvl_bytes=1 << 20)
    return made


def equal(tensor, array):
    found = to_numpy(tensor)
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == np.ascontiguousarray(array).tobytes()


def test_layout(rig, rng):
    case = Case(rng)
    for rank, got in enumerate(rig.each(lambda b, r: b.get_dispatch_layout(to_torch(case.idx[r]), EXPERTS))):
        per_rank, per_rdma_rank, per_expert, in_rank, event = got
        want = reference_layout(case.idx[rank])
        equal(per_rank, want.num_tokens_per_rank)
        equal(per_expert, want.num_tokens_per_expert)
        equal(in_rank, want.is_token_in_rank)
        assert per_rdma_rank is None and event.event is None


def reference_layout(idx):
    return get_dispatch_layout(idx, EXPERTS, len(TOKENS))


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_dispatch_with_top_k(rig, rng, fp8):
    case = Case(rng, fp8)
    for rank, got in enumerate(rig.each(case.dispatch)):
        recv_x, recv_idx, recv_weights, per_expert, handle, event = got
        want = case.truth(rank)
        for tensor, array in zip(recv_x, want.recv_x, strict=True) if fp8 else [(recv_x, want.recv_x)]:
            equal(tensor, array)
        equal(recv_idx, want.recv_topk_idx)
        equal(recv_weights, want.recv_topk_weights)
        assert per_expert == want.num_recv_tokens_per_expert.tolist() and type(per_expert) is list
        assert event.event is None
        prefix, sent_channels, received_channels, src_idx, in_rank, send_head = handle
        assert prefix[:, rank].tolist() == want.handle.source_begin[1:].tolist()
        equal(src_idx, want.handle.src_token)
        layout = reference_layout(case.idx[rank])
        equal(in_rank, layout.is_token_in_rank)
        assert sent_channels[:, 0].tolist() == layout.num_tokens_per_rank.tolist()
        assert received_channels.tolist() == [[0], [0]]
        assert (send_head >= 0).tolist() == layout.is_token_in_rank.tolist() and send_head.dtype == torch.int32


def test_dispatch_without_top_k(rig, rng):
    case = Case(rng)
    for rank, got in enumerate(rig.each(lambda b, r: case.dispatch(b, r, topk=False))):
        recv_x, recv_idx, recv_weights, per_expert, handle, _ = got
        equal(recv_x, case.truth(rank).recv_x)
        assert recv_idx is None and recv_weights is None and len(handle) == 6
        assert per_expert == case.truth(rank).num_recv_tokens_per_expert.tolist()


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_a_cached_dispatch_goes_the_same_way(rig, rng, fp8):
    case = Case(rng, fp8)
    then = other_rows(case.x)

    def twice(buffer, rank):
        first = case.dispatch(buffer, rank)
        others = tuple(map(to_torch, then[rank])) if fp8 else to_torch(then[rank])
        return buffer.dispatch(others, handle=first[4]), buffer.runtime.calls

    for rank, (second, calls) in enumerate(rig.each(twice)):
        want = reference.dispatch(then, case.idx, case.weights, rank, EXPERTS).recv_x
        for part, array in zip(second[0], want, strict=True) if fp8 else [(second[0], want)]:
            equal(part, array)
        assert second[1:5] == (None, None, None, None)
        assert [name for name, *_ in calls].count("notify") == 1


def test_scales_of_any_strides_and_packed_ones(rig, rng):
    case = Case(rng, fp8=True)

    def column_major(buffer, rank):
        (x, scales), idx, weights = case.tensors(rank)
        columns = scales.T.contiguous().T
        assert not columns.is_contiguous() or min(columns.shape) == 1
        return buffer.dispatch((x, columns), **case.layout(buffer, rank), topk_idx=idx, topk_weights=weights)

    def packed(buffer, rank):
        (x, scales), *_ = case.tensors(rank)
        return buffer.dispatch((x, scales.view(torch.int32)), **case.layout(buffer, rank))

    for rank, got in enumerate(rig.each(column_major)):
        equal(got[0][1], case.truth(rank).recv_x[1])
        assert got[0][1].is_contiguous()
    for rank, got in enumerate(rig.each(packed)):
        equal(got[0][1].view(torch.float32), case.truth(rank).recv_x[1])
        assert got[0][1].dtype == torch.int32


def test_worst_case_rows_need_no_counts(rig, rng):
    case, worst = Case(rng), sum(TOKENS)

    def call(buffer, rank):
        got = case.dispatch(buffer, rank, num_worst_tokens=worst)
        return got, buffer.runtime.calls, buffer.combine(got[0], got[4])[0]

    everyone = rig.each(call)
    for rank, (got, calls, combined) in enumerate(everyone):
        recv_x, recv_idx, recv_weights, per_expert, handle, _ = got
        want = case.truth(rank)
        rows = len(want.recv_x)
        assert per_expert == [] and ("counts",) not in calls
        assert len(recv_x) == len(recv_idx) == len(recv_weights) == len(handle[3]) == worst
        equal(recv_x[:rows], want.recv_x)
        equal(recv_idx[:rows], want.recv_topk_idx)
        assert (recv_idx[rows:] == -1).all() and (recv_weights[rows:] == 0).all()
        handles = [case.truth(r).handle for r in range(2)]
        equal(combined, reference.combine([case.truth(r).recv_x for r in range(2)], handles, rank, TOKENS[rank])[0])


def test_expert_alignment(rig, rng):
    case = Case(rng)
    for rank, got in enumerate(rig.each(lambda b, r: case.dispatch(b, r, expert_alignment=4))):
        counts = case.truth(rank).num_recv_tokens_per_expert
        assert got[3] == (-(-counts // 4) * 4).tolist()


def test_combine_with_weights_and_biases(rig, rng):
    case = Case(rng)
    biases = [torch.full((n, HIDDEN), 1.0, dtype=torch.bfloat16) for n in TOKENS]

    def call(buffer, rank):
        recv_x, _, recv_weights, _, handle, _ = case.dispatch(buffer, rank)
        plain, weights, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
        one = buffer.combine(recv_x, handle, bias=biases[rank])
        two = buffer.combine(recv_x, handle, bias=(biases[rank], biases[rank]))
        assert one[1] is None and two[1] is None
        return plain, weights, one[0], two[0]

    truths = [case.truth(rank) for rank in range(2)]
    for rank, (plain, weights, one, two) in enumerate(rig.each(call)):
        want, _ = reference.combine([t.recv_x for t in truths], [t.handle for t in truths], rank, TOKENS[rank])
        equal(plain, want)
        # Every choice comes home from the one rank that has its expert.
        np.testing.assert_array_equal(weights.numpy(), case.weights[rank])
        assert (one.float() - plain.float() - 1).abs().max() < 0.05
        assert (two.float() - plain.float() - 2).abs().max() < 0.1


def test_no_rows_at_all(rig):
    masked = torch.full((4, TOPK), -1, dtype=torch.int64)

    def call(buffer, rank):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(masked, EXPERTS)
        x = torch.zeros(4, HIDDEN, dtype=torch.bfloat16)
        got = buffer.dispatch(x, None, per_rank, None, in_rank, per_expert, masked, torch.zeros(4, TOPK))
        return got, buffer.combine(got[0], got[4])[0]

    for got, combined in rig.each(call):
        assert got[0].shape == (0, HIDDEN) and got[1].shape == (0, TOPK) and got[3] == [0] * (EXPERTS // 2)
        assert combined.shape == (4, HIDDEN) and not combined.any()


def test_sms_come_from_the_config_or_the_class(rig, rng):
    case = Case(rng)

    def call(buffer, rank):
        got = case.dispatch(buffer, rank, config=Config(12))
        buffer.combine(got[0], got[4])
        return [entry[2] for entry in buffer.runtime.calls if entry[0] in ("dispatch", "combine")]

    assert rig.each(call) == [[12, 20]] * 2


# ---- streams
def test_the_caller_waits_unless_it_asks_for_an_event(monkeypatch, rng):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20)
    log, idx = rig.cpu.log, torch.zeros(4, 1, dtype=torch.int64)
    log.clear()
    buffer.get_dispatch_layout(idx, EXPERTS)
    assert [entry for entry in log if "waits" in entry[1]] == [
        ("comm", "waits for", "caller"), ("caller", "waits for", "comm")
    ]  # fmt: skip
    assert {call[1] for call in buffer.runtime.calls} == {2}, "kernels go to the communication stream"

    log.clear()
    *_, event = buffer.get_dispatch_layout(idx, EXPERTS, previous_event=buffer.capture(), async_finish=True)
    assert log[0] == ("comm", "waits for", "event of caller")
    assert not [entry for entry in log if entry[:2] == ("caller", "waits for")]
    assert {entry[2] for entry in log if entry[:2] == ("comm", "keeps")} == {(4, 1), (1,), (EXPERTS,)}
    event.current_stream_wait()
    assert log[-1] == ("caller", "waits for", "event of comm")

    log.clear()
    with event:
        pass
    assert log == [("caller", "waits for", "event of comm")]


def test_results_of_the_communication_stream(monkeypatch):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20)
    rig.cpu.log.clear()
    buffer.get_dispatch_layout(torch.zeros(4, 1, dtype=torch.int64), EXPERTS, buffer.capture(), True, True)
    allocated = {entry[0] for entry in rig.cpu.log if entry[1] == "allocates"}
    kept = {entry[0] for entry in rig.cpu.log if entry[1] == "keeps"}
    assert allocated == {"comm"} and kept == {"comm", "caller"}
    assert rig.cpu.current_stream() == "caller"


def test_every_tensor_of_an_asynchronous_dispatch_is_kept(monkeypatch, rng):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20)
    idx, x = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, HIDDEN, dtype=torch.bfloat16)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    rig.cpu.log.clear()
    got = buffer.dispatch(x, None, per_rank, None, in_rank, per_expert, idx, torch.ones(4, 1), async_finish=True)
    kept = [entry[2] for entry in rig.cpu.log if entry[1] == "keeps"]
    # x, idx, weights, per_expert, in_rank, positions, prefix; recv_x, recv_idx, recv_weights, src_idx.
    assert sorted(kept) == sorted([(4, HIDDEN), (4, 1), (4, 1), (EXPERTS,), (4, 1), (4, 1), (1, 1), (4, HIDDEN),
                                   (4, 1), (4, 1), (4,)])  # fmt: skip
    got[5].current_stream_wait()


# ---- the engine's memory
def test_memory_goes_back_when_the_last_tensor_goes(rig, rng):
    case = Case(rng)

    def call(buffer, rank):
        engine = buffer.runtime
        got = case.dispatch(buffer, rank)
        handle, part = got[4], got[0][1:, :8]
        del got
        gc.collect()
        case.dispatch(buffer, rank)
        assert engine.returned == 0, "a view of rows holds the block"
        del part
        gc.collect()
        assert engine.returned == 0, "not before the communication stream waits"
        before = len(rig.cpu.log)
        case.dispatch(buffer, rank)
        waits = [entry for entry in rig.cpu.log[before:] if entry == ("comm", "waits for", "event of caller")]
        assert len(handle[3]) == len(case.truth(rank).recv_x), "the handle does not hold it"
        return engine.returned, len(waits) >= 2

    assert rig.each(call) == [(2, True)] * 2


def test_rows_are_copied_out_when_room_is_scarce(rig, rng):
    case = Case(rng, fp8=True)

    def call(buffer, rank):
        engine = buffer.runtime
        engine.largest_block = 64
        kept = [case.dispatch(buffer, rank) for _ in range(4)]
        gc.collect()
        return engine.returned, kept

    for rank, (returned, kept) in enumerate(rig.each(call)):
        assert returned == 3, "every block but the last, though all results are held"
        want = case.truth(rank)
        for (recv_x, scales), recv_idx, recv_weights, *_ in kept:
            equal(recv_x, want.recv_x[0])
            equal(scales, want.recv_x[1])
            equal(recv_idx, want.recv_topk_idx)
            equal(recv_weights, want.recv_topk_weights)
    copies = [entry for entry in rig.cpu.log if entry[:2] == ("caller", "allocates") and entry[2][1:] == (HIDDEN,)]
    assert len(copies) == 8


def test_memory_that_combine_stages_goes_back(monkeypatch):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20)
    idx, x = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, HIDDEN, dtype=torch.bfloat16)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    handle = buffer.dispatch(x, None, per_rank, None, in_rank, per_expert)[4]
    engine = buffer.runtime
    buffer.combine(x, handle)
    gc.collect()
    assert engine.returned == 1, "dispatch's block; combine's not before the communication stream waits"
    buffer.combine(x, handle)
    gc.collect()
    assert engine.returned == 2


def test_a_tensor_outlives_the_buffer(monkeypatch):
    """Its block stays with it, and goes when it does: no call will ask for it again."""
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20, explicitly_destroy=True)
    idx, x = torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, HIDDEN, dtype=torch.bfloat16)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    recv_x = buffer.dispatch(x, None, per_rank, None, in_rank, per_expert)[0]
    engine = buffer.runtime
    buffer.destroy()
    gc.collect()
    assert engine.returned == 0 and torch.equal(recv_x, x)
    del recv_x
    gc.collect()
    assert engine.returned == 1


def test_memory_of_a_graph_stays(monkeypatch, rng):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1 << 20, explicitly_destroy=True)
    idx, x = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, HIDDEN, dtype=torch.bfloat16)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    arguments = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}
    rig.cpu.in_graph = True
    with pytest.raises(BadState, match="num_worst_tokens > 0, or a handle"):
        buffer.dispatch(x, **arguments)
    buffer.dispatch(x, **arguments, topk_idx=idx, topk_weights=torch.ones(4, 1), num_worst_tokens=4)
    rig.cpu.in_graph = False
    engine = buffer.runtime
    for _ in range(2):
        buffer.dispatch(x, **arguments)
    gc.collect()
    assert engine.returned == 1, "the replayed dispatch's block is not given out again"
    buffer.destroy()
    gc.collect()
    assert engine.returned == 3
