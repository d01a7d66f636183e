"""Buffer between hosts over the very kernels that run on GPUs, on the CPU runner: DeepEP's calls, CPU tensors, no GPU.

What DeepEP's own test of these calls asks of their results is asked here, and every bit besides.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import internode_rig
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))
import internode_program as program  # noqa: E402
from deepep_rig import Rig, other_rows, to_numpy, to_torch  # noqa: E402
from internode_checks import unrounded_sums  # noqa: E402
from test_deepep_world import Running, WorldRig  # noqa: E402

from rdmakit.ep import reference  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.ep.config import Config  # noqa: E402
from rdmakit.ep.layout import get_dispatch_layout  # noqa: E402
from rdmakit.ep.numerics import quantize_fp8  # noqa: E402
from rdmakit.ep.routing import uniform  # noqa: E402
from rdmakit.errors import BadArgument, BadState, NotAvailable  # noqa: E402

HIDDEN, EXPERTS, TOPK = 512, 16, 3
SIZES = {"num_nvl_bytes": 1 << 20, "num_rdma_bytes": 1 << 18}


class Awaited(Running):
    """So does waiting for an event of it."""

    def wait_event(self, stream, event):
        super().wait_event(stream, event)
        if (stream, event) == ("caller", "event of comm"):
            self.rig.run_world()


class HostsRig(WorldRig):
    """Ranks of `hosts` hosts; their engines come from internode_rig."""

    def __init__(self, monkeypatch, hosts=2, local=1, **arguments):
        Rig.__init__(self, monkeypatch, hosts * local)
        self.cpu = Awaited(self)
        self.local = local
        self.inner = internode_rig.Rig(hosts, local, **arguments)
        self._rank = threading.local()
        lock = threading.Lock()
        for engine in self.inner.engines:
            engine.link.wait = lambda done, what: done() or self.run_world()
            engine.link.launch = self._one_at_a_time(engine.link.launch, lock)
            engine.copy = self._behind_what_is_queued(engine.copy)

    def make(self, **arguments):
        return super().make(**{"ranks_per_host": self.local, **SIZES, **arguments})


@pytest.fixture(params=[(2, 1), (2, 2)], ids=["2x1", "2x2"])
def rig(monkeypatch, request, seed):
    monkeypatch.setattr(Buffer, "num_sms", 6)
    return HostsRig(monkeypatch, *request.param, seed=seed)


@pytest.fixture
def case(rig, rng):
    tokens = [11, 6, 3, 9][: rig.ranks]
    routes = [uniform(n, EXPERTS, TOPK, seed=int(rng.integers(1 << 30))).masked(0.2, seed=1) for n in tokens]
    rows = [to_numpy(torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float32)).bfloat16()) for n in tokens]
    idx, weights = [r.topk_idx for r in routes], [r.topk_weights for r in routes]
    return SimpleNamespace(tokens=tokens, x=rows, idx=idx, weights=weights)


def same(tensor, array):
    found = to_numpy(tensor)
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == np.ascontiguousarray(array).tobytes()


def layout_of(buffer, idx):
    names = ("num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank")
    return dict(zip(names, buffer.get_dispatch_layout(idx, EXPERTS), strict=False))


def test_layout_tells_tokens_of_hosts(rig, case):
    rig.make()
    for rank, got in enumerate(rig.each(lambda b, r: b.get_dispatch_layout(to_torch(case.idx[r]), EXPERTS))):
        per_rank, per_host, per_expert, in_rank, event = got
        want = get_dispatch_layout(case.idx[rank], EXPERTS, rig.ranks, rig.local)
        same(per_rank, want.num_tokens_per_rank)
        same(per_host, want.num_tokens_per_host)
        same(per_expert, want.num_tokens_per_expert)
        same(in_rank, want.is_token_in_rank)
        assert event.event is None


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("topk", [False, True], ids=["rows", "topk"])
def test_dispatch_and_combine(rig, case, fp8, topk):
    rig.make()
    given = [quantize_fp8(x) for x in case.x] if fp8 else case.x
    then = other_rows(given)
    biases = [[np.full_like(x, value) for x in case.x] for value in (1, -0.5)]

    def call(buffer, rank):
        x, others = (tuple(map(to_torch, each[rank])) if fp8 else to_torch(each[rank]) for each in (given, then))
        if fp8:
            x = x[0], x[1].T.contiguous().T  # as DeepEP's test passes scales
        idx, weights = to_torch(case.idx[rank]), to_torch(case.weights[rank])
        chosen = {"topk_idx": idx, "topk_weights": weights} if topk else {}
        got = buffer.dispatch(x, **layout_of(buffer, idx), **chosen, config=Config(6), expert_alignment=2)
        again = buffer.dispatch(others, handle=got[4])
        y = torch.randn(len(got[4][7]), HIDDEN, generator=torch.Generator().manual_seed(rank)).bfloat16()
        plain = buffer.combine(y, got[4], topk_weights=got[2])
        bias = tuple(to_torch(each[rank]) for each in biases)
        return got, again, y, plain, buffer.internode_combine(y, got[4], bias=bias)

    everyone = rig.each(call)
    truths = [reference.dispatch(given, case.idx, case.weights, rank, EXPERTS) for rank in range(rig.ranks)]
    handles = [truth.handle for truth in truths]
    ys = [to_numpy(y) for _, _, y, *_ in everyone]
    for rank, (got, again, _, (combined, weights, _), (biased, nothing, _)) in enumerate(everyone):
        recv_x, recv_idx, recv_weights, per_expert, handle, _ = got
        want = truths[rank]
        others = reference.dispatch(then, case.idx, case.weights, rank, EXPERTS)
        for found, truth in ((recv_x, want), (again[0], others)):
            for part, array in zip(found, truth.recv_x, strict=True) if fp8 else [(found, truth.recv_x)]:
                same(part, array)
        assert again[1:5] == (None, None, None, None) and nothing is None
        assert per_expert == (-(-want.num_recv_tokens_per_expert // 2) * 2).tolist()
        check_handle(handle, want, get_dispatch_layout(case.idx[rank], EXPERTS, rig.ranks, rig.local), rank)
        same(combined, reference.combine(ys, handles, rank, case.tokens[rank], None, rig.local)[0])
        exact = unrounded_sums(ys, handles, rank, case.tokens[rank], rig.local)
        for each in biases:
            exact = exact + each[rank].astype(np.float32)
        same(biased, exact.astype(case.x[0].dtype))
        if topk:
            same(recv_idx, want.recv_topk_idx.astype(np.int64))
            same(recv_weights, want.recv_topk_weights)
            same(weights, case.weights[rank])
        else:
            assert recv_idx is None and recv_weights is None and weights is None


def check_handle(handle, want, layout, rank):
    assert isinstance(handle, tuple) and len(handle) == 10
    in_rank, to_hosts, to_ranks, begin_hosts, host_sum, begin_ranks, rank_sum, meta, rdma_head, nvl_head = handle
    same(in_rank, layout.is_token_in_rank)
    assert to_hosts[:, 0].tolist() == layout.num_tokens_per_host.tolist()
    assert to_ranks[:, 0].tolist() == layout.num_tokens_per_rank.tolist()
    assert begin_hosts.shape == to_hosts.shape and begin_ranks.shape == to_ranks.shape
    assert not begin_hosts.any() and not begin_ranks.any()
    assert handle[-4] is rank_sum and rank_sum.tolist() == want.handle.source_begin[1:].tolist()
    assert len(host_sum) == len(to_hosts) and (host_sum[1:] >= host_sum[:-1]).all()
    assert meta.dtype == torch.uint8 and meta.shape == (len(want.handle.src_token), 4)
    assert meta.view(torch.int32).flatten().tolist() == want.handle.src_token.tolist()
    assert rdma_head.shape == (len(in_rank), len(to_hosts)) and nvl_head.shape[1] == len(to_ranks) // len(to_hosts)
    assert ((rdma_head >= 0).sum(0) == to_hosts[:, 0]).all()
    assert {t.dtype for t in handle[1:7]} | {rdma_head.dtype, nvl_head.dtype} == {torch.int32}


def test_events_and_streams(rig, case):
    rig.make()

    def call(buffer, rank):
        idx = to_torch(case.idx[rank])
        given = layout_of(buffer, idx)
        before = buffer.capture()
        rows, *_, handle, event = buffer.internode_dispatch(
            to_torch(case.x[rank]), **given, previous_event=before, async_finish=True, allocate_on_comm_stream=True
        )
        rig.run_world()
        combined, _, done = buffer.combine(rows, handle, previous_event=before, async_finish=True)
        rig.run_world()
        return event, done, combined, rows

    log = rig.cpu.log
    everyone = rig.each(call)
    handles = [reference.make_handle(case.idx, rank, EXPERTS) for rank in range(rig.ranks)]
    rows = [to_numpy(each[3]) for each in everyone]
    for rank, (event, done, combined, _) in enumerate(everyone):
        assert event.event is not None and done.event is not None
        same(combined, reference.combine(rows, handles, rank, case.tokens[rank], None, rig.local)[0])
    assert ("comm", "waits for", "event of caller") in log
    assert any(entry[:2] == ("comm", "keeps") for entry in log)


# Not FP8 and asynchronous at once: a packed copy of scales lives as long as a stream needs it, and this rig has none.
@pytest.mark.parametrize("modes", [(True, True, False, False), (False, True, True, True), (True, False, False, True)],
                         ids=["fp8-topk", "topk-async-previous", "fp8-previous"])  # fmt: skip
def test_the_program_for_gpus(rig, monkeypatch, modes, seed):
    """tests/gpu/internode_program.py, which torchrun starts on GPUs: its truth and its checks, here on CPU tensors."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    options = SimpleNamespace(tokens=13, hidden=HIDDEN, experts=EXPERTS, topk=TOPK, sms=6, seed=seed % 1000)
    truth = program.Truth(options, rig.ranks, rig.local)
    fp8, topk, asynchronous, previous = modes
    rig.make()
    given = {"fp8": fp8, "topk": topk, "asynchronous": asynchronous, "previous": previous}
    rig.each(lambda buffer, rank: program.check_round_trip(buffer, truth, rank, **given))
    truth.tokens[1].x[3, 5] += 1  # and they can fail
    if not fp8:
        with pytest.raises(AssertionError, match="rows: "):
            program.equal("rows", truth.tokens[1].x, program.make_tokens(options, 1).x)


def test_refusals(rig, case, monkeypatch):
    rig.make()

    def call(buffer, rank):
        idx, x = to_torch(case.idx[rank]), to_torch(case.x[rank])
        given = layout_of(buffer, idx)
        handle = buffer.dispatch(x, **given)[4]
        for kind, text, what in (
            (NotAvailable, "num_worst_tokens is not supported between hosts", lambda: buffer.dispatch(
                x, **given, topk_idx=idx, topk_weights=to_torch(case.weights[rank]), num_worst_tokens=9)),
            (BadArgument, "num_tokens_per_rdma_rank", lambda: buffer.dispatch(
                x, **{**given, "num_tokens_per_rdma_rank": None})),
            (BadArgument, "no handle of a dispatch between hosts .value tuple of 10", lambda: buffer.combine(
                x, tuple(handle))),
            (BadArgument, "no handle of a dispatch between hosts", lambda: buffer.dispatch(x, handle=7)),
            (BadArgument, "a cached dispatch with top-k", lambda: buffer.dispatch(x, handle=handle, topk_idx=idx)),
            (BadArgument, "rule: 4 … ", lambda: buffer.dispatch(x, **given, config=Config(2))),
            (BadArgument, r"rule: \[\d+, hidden\]", lambda: buffer.combine(torch.cat([x, x, x]).repeat(9, 1), handle)),
            (BadState, "low-latency", lambda: buffer.low_latency_dispatch(x, idx, 16, EXPERTS)),
        ):  # fmt: skip
            with pytest.raises(kind, match=text) as caught:
                what()
            assert caught.value.rule and caught.value.remedy

    rig.each(call)

    def in_a_graph(buffer, rank):
        with pytest.raises(BadState, match="cannot be captured into a CUDA graph"):
            buffer.internode_dispatch(to_torch(case.x[rank]))

    rig.cpu.in_graph = True
    rig.each(in_a_graph)
    rig.cpu.in_graph = False

    rig.make(num_rdma_bytes=0)
    with pytest.raises(BadState, match="num_rdma_bytes > 0"):
        rig.buffers[0].internode_combine(None, None)


def test_the_environment_makes_hosts(rig, case, monkeypatch):
    monkeypatch.setenv("RDMAKIT_RANKS_PER_HOST", str(rig.local))
    rig.make(ranks_per_host=None)
    assert all(buffer._hosts == 2 for buffer in rig.buffers)
    assert Config().get_rdma_buffer_size_hint(1024, rig.ranks) > 0
