"""Buffer's low-latency calls, as DeepEP V1's: shapes, strides, handles, hooks, zero-copy, statistics, masks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
from deepep_rig import Rig, to_numpy, to_torch  # noqa: E402
from numpy_engine import FP8  # noqa: E402

from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.ep.engine import RECEIVE, SEND  # noqa: E402
from rdmakit.ep.numerics import calc_diff, dequantize_fp8  # noqa: E402
from rdmakit.ep.routing import uniform  # noqa: E402
from rdmakit.errors import BadArgument, BadState, NotAvailable  # noqa: E402

RANKS, TOKENS, MAX_TOKENS, HIDDEN, EXPERTS, TOPK = 2, (6, 5), 6, 1024, 8, 3
ROWS, LOCAL = RANKS * MAX_TOKENS, EXPERTS // RANKS


class Case:
    def __init__(self, rng):
        routes = [uniform(n, EXPERTS, TOPK, seed=int(rng.integers(1 << 30))).masked(0.2, seed=1) for n in TOKENS]
        self.idx = [to_torch(route.topk_idx) for route in routes]
        self.weights = [to_torch(route.topk_weights) for route in routes]
        self.x = [torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float32)).bfloat16() for n in TOKENS]

    def rows(self, rank, expert):
        """(source, token) of the rows that come to a local expert, in order."""
        number = rank * LOCAL + expert
        return [(s, t) for s in range(RANKS) for t in range(TOKENS[s]) if (self.idx[s][t] == number).any()]


@pytest.fixture
def case(rng):
    return Case(rng)


@pytest.fixture
def rig(monkeypatch):
    made = Rig(monkeypatch)
    made.make(num_rdma_bytes=Buffer.get_low_latency_rdma_size_hint(MAX_TOKENS, HIDDEN, RANKS, EXPERTS),
              low_latency_mode=True, enable_shrink=True)  # fmt: skip
    return made


def dispatch(case, buffer, rank, **further):
    return buffer.low_latency_dispatch(case.x[rank], case.idx[rank], MAX_TOKENS, EXPERTS, **further)


def check_handle(case, got, rank):
    _, count, handle, *_ = got
    src_info, layout_range, *sizes = handle
    assert isinstance(handle, tuple) and len(handle) == 5 and sizes == [MAX_TOKENS, HIDDEN, EXPERTS]
    assert handle.row_map.shape == (RANKS, MAX_TOKENS, TOPK) and handle.row_map.dtype == torch.int32
    assert count.dtype == torch.int32 and src_info.dtype == torch.int32 and layout_range.dtype == torch.int64
    assert src_info.shape == (LOCAL, ROWS) and layout_range.shape == (LOCAL, RANKS)
    for expert in range(LOCAL):
        rows = case.rows(rank, expert)
        assert count[expert] == len(rows) == (layout_range[expert] & (2**32 - 1)).sum()
        assert src_info[expert, : len(rows)].tolist() == [token for _, token in rows]
        for source in range(RANKS):
            begin, number = layout_range[expert, source] >> 32, layout_range[expert, source] & (2**32 - 1)
            assert [s for s, _ in rows[begin : begin + number]] == [source] * number


def test_bf16(case, rig):
    everyone = rig.each(lambda b, r: dispatch(case, b, r, use_fp8=False))
    for rank, got in enumerate(everyone):
        recv_x, _, _, event, hook = got
        assert recv_x.shape == (LOCAL, ROWS, HIDDEN) and recv_x.dtype == torch.bfloat16
        assert event.event is None and hook is None
        check_handle(case, got, rank)
        for expert in range(LOCAL):
            for row, (source, token) in enumerate(case.rows(rank, expert)):
                assert torch.equal(recv_x[expert, row], case.x[source][token])


@pytest.mark.parametrize("round_scale", [False, True])
def test_fp8_has_scales_in_columns(case, rig, round_scale):
    for rank, got in enumerate(rig.each(lambda b, r: dispatch(case, b, r, round_scale=round_scale))):
        (recv_x, scales), *_ = got
        check_handle(case, got, rank)
        assert recv_x.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32
        assert scales.shape == (LOCAL, ROWS, HIDDEN // 128) and scales.stride() == (ROWS * HIDDEN // 128, 1, ROWS)
        for expert in range(LOCAL):
            for row, (source, token) in enumerate(case.rows(rank, expert)):
                back = dequantize_fp8(to_numpy(recv_x[expert, row]), scales[expert, row].contiguous().numpy())
                want = case.x[source][token].float().numpy()
                assert calc_diff(back[None], want[None]) < 2e-3
                if round_scale:
                    assert np.all(np.log2(scales[expert, row].numpy()) % 1 == 0)


def test_ue8m0_has_four_scales_an_int(case, rig):
    plain = rig.each(lambda b, r: dispatch(case, b, r, round_scale=True))
    packed = rig.each(lambda b, r: dispatch(case, b, r, round_scale=True, use_ue8m0=True))
    for rank in range(RANKS):
        (one_x, floats), (other_x, ints) = plain[rank][0], packed[rank][0]
        assert ints.shape == (LOCAL, ROWS, HIDDEN // 512) and ints.dtype == torch.int32 and ints.stride(1) == 1
        # DeepEP's tests unpack so: the bytes of an int are the exponents of four scales.
        unpacked = (ints.contiguous().view(torch.uint8).to(torch.int32) << 23).view(torch.float32)
        for expert in range(LOCAL):
            count = len(case.rows(rank, expert))
            assert torch.equal(unpacked[expert, :count], floats[expert, :count])
            assert to_numpy(one_x[expert, :count]).tobytes() == to_numpy(other_x[expert, :count]).tobytes()
        assert to_numpy(one_x).dtype == FP8


@pytest.mark.parametrize("zero_copy", [False, True])
def test_combine_weighs_and_adds(case, rig, zero_copy):
    def call(buffer, rank):
        recv_x, _, handle, *_ = dispatch(case, buffer, rank, use_fp8=False)
        out = torch.empty_like(case.x[rank])
        if zero_copy:
            place = buffer.get_next_low_latency_combine_buffer(handle)
            assert place.shape == recv_x.shape and place.dtype == torch.bfloat16
            place[:, :, :] = recv_x
            recv_x = torch.zeros_like(recv_x)
        combined, event, hook = buffer.low_latency_combine(
            recv_x, case.idx[rank], case.weights[rank], handle, zero_copy=zero_copy, out=out
        )
        if zero_copy:
            other = buffer.get_next_low_latency_combine_buffer(handle)
            assert other.data_ptr() != place.data_ptr(), "one is filled while the other is read"
        assert combined is out and event.event is None and hook is None
        return combined

    for rank, combined in enumerate(rig.each(call)):
        weight = case.weights[rank].masked_fill(case.idx[rank] == -1, 0).sum(1, keepdim=True)
        assert calc_diff(combined.float().numpy(), (case.x[rank].float() * weight).numpy()) < 1e-5


def test_zero_copy_needs_a_filled_buffer(case, rig):
    def call(buffer, rank):
        recv_x, _, handle, *_ = dispatch(case, buffer, rank, use_fp8=False)
        arguments = recv_x, case.idx[rank], case.weights[rank], handle
        with pytest.raises(BadState, match="zero_copy without a filled buffer"):
            buffer.low_latency_combine(*arguments, zero_copy=True)
        buffer.get_next_low_latency_combine_buffer(handle)
        buffer.low_latency_combine(*arguments, zero_copy=True)
        with pytest.raises(BadState, match="zero_copy without a filled buffer"):
            buffer.low_latency_combine(*arguments, zero_copy=True)

    rig.each(call)


def test_hooks_send_first_and_receive_later(case, rig):
    def call(buffer, rank):
        got = dispatch(case, buffer, rank, use_fp8=False, return_recv_hook=True)
        recv_x, _, handle, event, hook = got
        assert event.event is None
        hook()
        check_handle(case, got, rank)
        combined, _, home = buffer.low_latency_combine(
            recv_x, case.idx[rank], case.weights[rank], handle, return_recv_hook=True
        )
        home()
        with pytest.raises(BadState, match="twice"):
            home()
        phases = [call[1:3] for call in buffer.runtime.calls if call[0] in ("ll_dispatch", "ll_combine")]
        # On the caller's stream, whose address is 1.
        assert phases == [(SEND, 1), (RECEIVE, 1)] * 2
        return combined

    assert [tuple(combined.shape) for combined in rig.each(call)] == [(n, HIDDEN) for n in TOKENS]
    assert not [entry for entry in rig.cpu.log if "waits" in entry[1]]


def test_an_event_holds_the_tensors(case, rig):
    def call(buffer, rank):
        recv_x, count, handle, event, hook = dispatch(case, buffer, rank, async_finish=True)
        held = [tensor.data_ptr() for tensor in event.extra_tensors if tensor is not None]
        assert {recv_x[0].data_ptr(), count.data_ptr(), handle[0].data_ptr(), handle.row_map.data_ptr()} <= set(held)
        event.current_stream_wait()
        assert hook is None and [entry[2] for entry in buffer.runtime.calls if entry[0] == "ll_dispatch"] == [2]

    rig.each(call)


def test_statistics_are_added_to(case, rig):
    received = [torch.full((LOCAL,), 100, dtype=torch.int32) for _ in range(RANKS)]
    waited = [torch.zeros(RANKS, dtype=torch.int64) for _ in range(RANKS)]
    waited_home = [torch.ones(RANKS, dtype=torch.int64) for _ in range(RANKS)]

    def call(buffer, rank):
        recv_x, count, handle, *_ = dispatch(
            case, buffer, rank, use_fp8=False, cumulative_local_expert_recv_stats=received[rank],
            dispatch_wait_recv_cost_stats=waited[rank],
        )  # fmt: skip
        for waits in (waited_home[rank], None):
            buffer.low_latency_combine(recv_x, case.idx[rank], case.weights[rank], handle,
                                       combine_wait_recv_cost_stats=waits)  # fmt: skip
        with pytest.raises(BadArgument, match=r"combine_wait_recv_cost_stats has the wrong shape"):
            buffer.low_latency_combine(recv_x, case.idx[rank], case.weights[rank], handle,
                                       combine_wait_recv_cost_stats=waited_home[rank][1:])  # fmt: skip
        return count

    for rank, count in enumerate(rig.each(call)):
        assert torch.equal(received[rank], count + 100)
        assert waited[rank].tolist() == [7] * RANKS and waited_home[rank].tolist() == [10] * RANKS


def test_the_heap_is_laid_out_when_sizes_change(case, rig):
    def call(buffer, rank):
        buffer.clean_low_latency_buffer(MAX_TOKENS, HIDDEN, EXPERTS)
        old = next(dispatch(case, buffer, rank, use_fp8=False) for _ in range(2))
        x, idx = case.x[rank][:, :256].contiguous(), case.idx[rank]
        buffer.low_latency_dispatch(x, idx, MAX_TOKENS, EXPERTS)
        with pytest.raises(BadState, match="other sizes"):
            buffer.low_latency_combine(old[0], idx, case.weights[rank], old[2])
        with pytest.raises(BadState, match="other sizes"):
            buffer.low_latency_combine(old[0], idx, case.weights[rank], old[2], zero_copy=True)
        with pytest.raises(BadState, match=r"too small.*\n.*get_low_latency_rdma_size_hint\(600, 1024, 2, 8\)"):
            buffer.low_latency_dispatch(case.x[rank], idx, 600, EXPERTS)
        return [call[1:] for call in buffer.runtime.calls if call[0] in ("ll_configure", "ll_clean")]

    sizes = [(MAX_TOKENS, HIDDEN, EXPERTS, TOPK), (MAX_TOKENS, 256, EXPERTS, TOPK)]
    assert rig.each(call) == [[(1,), *sizes]] * RANKS


def test_masks(rig):
    buffer = rig.buffers[0]
    status = torch.full((RANKS,), 5, dtype=torch.int32)
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 0]
    buffer.low_latency_update_mask_buffer(1, True)
    rig.cpu.log.clear()
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 1]
    # In order with calls on either stream.
    assert rig.cpu.log == [("comm", "waits for", "caller"), ("caller", "waits for", "comm")]
    buffer.low_latency_update_mask_buffer(1)
    buffer.low_latency_update_mask_buffer(0, mask=True)
    buffer.low_latency_clean_mask_buffer()
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 0]
    with pytest.raises(BadArgument, match="no such rank"):
        buffer.low_latency_update_mask_buffer(2, True)
    with pytest.raises(BadArgument, match=r"mask_status has the wrong dtype"):
        buffer.low_latency_query_mask_buffer(status.long())


def test_what_low_latency_calls_refuse(case, rig):
    buffer, x, idx = rig.buffers[0], case.x[0], case.idx[0]

    def refused(kind, text, **changes):
        arguments = {"x": x, "topk_idx": idx, "num_max_dispatch_tokens_per_rank": MAX_TOKENS, "num_experts": EXPERTS}
        with pytest.raises(kind, match=text):
            buffer.low_latency_dispatch(**{**arguments, **changes})

    refused(BadArgument, "use_ue8m0 without round_scale", use_ue8m0=True)
    refused(BadArgument, "async_finish and return_recv_hook", async_finish=True, return_recv_hook=True)
    refused(BadArgument, r"too many tokens \(value 6\)", num_max_dispatch_tokens_per_rank=5)
    refused(BadArgument, r"x has the wrong dtype .*\n.*x.to\(torch.bfloat16\)", x=x.float())
    refused(BadArgument, "hidden does not fit", x=x[:, :200].contiguous())
    refused(BadArgument, r"use_ue8m0=False", x=x[:, :128].contiguous(), use_ue8m0=True, round_scale=True)
    refused(BadArgument, "topk_idx has the wrong dtype", topk_idx=idx.int())
    refused(BadArgument, "topk_idx has the wrong shape", topk_idx=idx[:-1])
    refused(BadArgument, "experts cannot be split", num_experts=9)
    refused(BadArgument, "cumulative_local_expert_recv_stats has the wrong shape",
            cumulative_local_expert_recv_stats=torch.zeros(3, dtype=torch.int32))  # fmt: skip
    refused(BadArgument, "dispatch_wait_recv_cost_stats has the wrong dtype",
            dispatch_wait_recv_cost_stats=torch.zeros(RANKS, dtype=torch.int32))  # fmt: skip
    everything = torch.zeros(LOCAL, ROWS, HIDDEN, dtype=torch.bfloat16)
    with pytest.raises(NotAvailable, match="use_logfmt is not supported"):
        buffer.low_latency_combine(everything, idx, case.weights[0], None, use_logfmt=True)
    with pytest.raises(BadArgument, match="no handle of low_latency_dispatch"):
        buffer.low_latency_combine(everything, idx, case.weights[0], (1, 2, 3, 4, 5))


def test_a_buffer_without_the_mode(monkeypatch):
    rig = Rig(monkeypatch, ranks=1)
    (buffer,) = rig.make(num_nvl_bytes=1024)
    with pytest.raises(BadState, match="no low-latency mode"):
        buffer.clean_low_latency_buffer(1, 128, 1)
    (buffer,) = rig.make(num_rdma_bytes=1 << 20, low_latency_mode=True)
    with pytest.raises(BadState, match="enable_shrink=True"):
        buffer.low_latency_clean_mask_buffer()
