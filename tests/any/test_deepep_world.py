"""Buffer over the very kernels that run on GPUs, on the CPU runner: DeepEP's calls, CPU tensors, no GPU.

A rank is a thread; where its caller's stream would wait for the communication stream, all meet and the world runs.
"""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
nvlink_rig = pytest.importorskip("nvlink_rig", reason="no engine for NVLink yet")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from deepep_rig import Cpu, Rig, other_rows, to_numpy, to_torch  # noqa: E402

from rdmakit.ep import reference  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.ep.numerics import calc_diff, quantize_fp8  # noqa: E402
from rdmakit.ep.routing import uniform  # noqa: E402

TOKENS, HIDDEN, EXPERTS, TOPK, MAX_TOKENS = (11, 6), 1024, 8, 3, 12


class Running(Cpu):
    """Waiting for the communication stream runs the world."""

    def __init__(self, rig):
        super().__init__()
        self.rig = rig

    def wait_stream(self, stream, other):
        super().wait_stream(stream, other)
        if (stream, other) == ("caller", "comm"):
            self.rig.run_world()

    @contextmanager
    def use(self, stream):
        if stream == "comm":
            self.rig.run_world()
        with super().use(stream):
            yield


class WorldRig(Rig):
    """Ranks of an emulated host: their engines come from nvlink_rig."""

    def __init__(self, monkeypatch, ranks=2, **arguments):
        super().__init__(monkeypatch, ranks)
        self.cpu = Running(self)
        self.inner = nvlink_rig.Rig(self.ranks, ll=(MAX_TOKENS, HIDDEN), **arguments)
        self._rank = threading.local()
        lock = threading.Lock()
        for engine in self.inner.engines:
            engine.link.wait = lambda done, what: done() or self.run_world()
            engine.link.launch = self._one_at_a_time(engine.link.launch, lock)
            engine.copy = self._behind_what_is_queued(engine.copy)

    @staticmethod
    def _one_at_a_time(launch, lock):
        def locked(*arguments, **further):
            with lock:
                launch(*arguments, **{**further, "stream": 0})

        return locked

    def _behind_what_is_queued(self, copy):
        """The world's copies are at once, Buffer's are queued."""

        def queued(*arguments):
            self.run_world()
            copy(*arguments)

        return queued

    def run_world(self):
        """All ranks have queued what they had; rank 0's thread runs it."""
        self.meeting.exchange(self._rank.number, None)
        if self._rank.number == 0:
            self.inner.run()
        self.meeting.exchange(self._rank.number, None)

    def _engine(self, rendezvous, **_):
        return self.inner.engines[rendezvous.rank]

    def _run(self, function, buffers=None):
        def known(buffer, rank):
            self._rank.number = rank
            return function(buffer, rank)

        return super()._run(known, buffers)


@pytest.fixture
def case(rng):
    routes = [uniform(n, EXPERTS, TOPK, seed=int(rng.integers(1 << 30))).masked(0.2, seed=1) for n in TOKENS]
    rows = [to_numpy(torch.from_numpy(rng.normal(size=(n, HIDDEN)).astype(np.float32)).bfloat16()) for n in TOKENS]
    return SimpleNamespace(x=rows, idx=[r.topk_idx for r in routes], weights=[r.topk_weights for r in routes])


def same(tensor, array):
    assert to_numpy(tensor).tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("worst", [0, sum(TOKENS)])
def test_dispatch_and_combine(monkeypatch, case, fp8, worst):
    rig = WorldRig(monkeypatch)
    rig.make(num_nvl_bytes=1 << 20)
    monkeypatch.setattr(Buffer, "num_sms", 4)
    given = [quantize_fp8(x) for x in case.x] if fp8 else case.x
    then = other_rows(given)

    def call(buffer, rank):
        x, others = (tuple(map(to_torch, each[rank])) if fp8 else to_torch(each[rank]) for each in (given, then))
        idx, weights = to_torch(case.idx[rank]), to_torch(case.weights[rank])
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
        got = buffer.dispatch(x, None, per_rank, None, in_rank, per_expert, idx, weights, num_worst_tokens=worst)
        again = buffer.dispatch(others, handle=got[4])[0]
        y = torch.randn(len(got[1]), HIDDEN, generator=torch.Generator().manual_seed(rank)).bfloat16()
        return got, again, y, buffer.combine(y, got[4], topk_weights=got[2])

    everyone = rig.each(call)
    truths = [reference.dispatch(given, case.idx, case.weights, rank, EXPERTS) for rank in range(2)]
    handles = [truth.handle for truth in truths]
    for rank, (got, again, _, (combined, weights, _)) in enumerate(everyone):
        recv_x, recv_idx, recv_weights, per_expert, handle, _ = got
        want, rows = truths[rank], len(handles[rank].src_token)
        others = reference.dispatch(then, case.idx, case.weights, rank, EXPERTS)
        for found, truth in ((recv_x, want), (again, others)):
            for part, array in zip(found, truth.recv_x, strict=True) if fp8 else [(found, truth.recv_x)]:
                same(part[:rows], array)
        same(recv_idx[:rows], want.recv_topk_idx)
        same(recv_weights[:rows], want.recv_topk_weights)
        same(handle[3][:rows], want.handle.src_token)
        assert (recv_idx[rows:] == -1).all() and len(recv_idx) == (worst or rows)
        assert per_expert == ([] if worst else want.num_recv_tokens_per_expert.tolist())
        ys = [to_numpy(y)[: len(h.src_token)] for (_, _, y, _), h in zip(everyone, handles, strict=True)]
        same(combined, reference.combine(ys, handles, rank, TOKENS[rank])[0])
        same(weights, case.weights[rank])


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_low_latency(monkeypatch, case, hooks, zero_copy):
    rig = WorldRig(monkeypatch)
    rig.make(num_rdma_bytes=1 << 22, low_latency_mode=True)

    def call(buffer, rank):
        idx, weights = to_torch(case.idx[rank]), to_torch(case.weights[rank])
        statistics = torch.zeros(EXPERTS // 2, dtype=torch.int32)
        recv_x, count, handle, _, hook = buffer.low_latency_dispatch(
            to_torch(case.x[rank]), idx, MAX_TOKENS, EXPERTS, statistics, use_fp8=False, return_recv_hook=hooks
        )
        if hooks:
            hook()
            rig.run_world()
        assert torch.equal(statistics, count)
        if zero_copy:
            buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = recv_x
        combined, _, hook = buffer.low_latency_combine(
            recv_x, idx, weights, handle, zero_copy=zero_copy, return_recv_hook=hooks
        )
        if hooks:
            hook()
            rig.run_world()
        return recv_x, count, handle, combined

    for rank, (recv_x, count, handle, combined) in enumerate(rig.each(call)):
        want = reference.low_latency_dispatch(case.x, case.idx, rank, EXPERTS, MAX_TOKENS, use_fp8=False)
        same(count, want.packed_recv_count)
        same(handle[1], want.packed_recv_layout_range)
        for expert, rows in enumerate(want.packed_recv_count):
            same(recv_x[expert, :rows], want.packed_recv_x[expert, :rows])
            same(handle[0][expert, :rows], want.packed_recv_src_info[expert, :rows])
        weight = np.where(case.idx[rank] >= 0, case.weights[rank], 0).sum(1, keepdims=True)
        assert calc_diff(combined.float().numpy(), case.x[rank].astype(np.float32) * weight) < 1e-5


@pytest.mark.parametrize("packed", [False, True], ids=["float", "ue8m0"])
def test_low_latency_fp8(monkeypatch, case, packed):
    rig = WorldRig(monkeypatch)
    rig.make(num_rdma_bytes=1 << 22, low_latency_mode=True)

    def call(buffer, rank):
        x, idx = to_torch(case.x[rank]), to_torch(case.idx[rank])
        plain = buffer.low_latency_dispatch(x, idx, MAX_TOKENS, EXPERTS, round_scale=packed)[0]
        return plain, buffer.low_latency_dispatch(x, idx, MAX_TOKENS, EXPERTS, round_scale=packed, use_ue8m0=packed)[0]

    for rank, ((plain_x, plain), (recv_x, scales)) in enumerate(rig.each(call)):
        want = reference.low_latency_dispatch(case.x, case.idx, rank, EXPERTS, MAX_TOKENS, use_fp8=True)
        for expert, rows in enumerate(want.packed_recv_count):
            same(recv_x[expert, :rows], to_numpy(plain_x[expert, :rows]))
            if packed:  # as DeepEP's tests unpack them
                exponents = scales.contiguous().view(torch.uint8)[expert, :rows].to(torch.int32)
                assert torch.equal((exponents << 23).view(torch.float32), plain[expert, :rows])
            else:
                same(recv_x[expert, :rows], want.packed_recv_x[expert, :rows])
                same(scales[expert, :rows], want.packed_recv_scales[expert, :rows])


def owner_of(experts, ranks):
    return torch.where(experts >= 0, experts // (EXPERTS // ranks), -1)


def test_ranks_die_as_in_deep_eps_shrink_test(monkeypatch, rng):
    """Rank 1 fails when it first calls dispatch, rank 3 combine, rank 2 clean; the rest go on, and query the masks."""
    ranks, fails = 4, {"dispatch": 1, "combine": 3, "clean": 2}
    rig = WorldRig(monkeypatch, ranks, shrink=True)
    rig.make(num_rdma_bytes=1 << 22, low_latency_mode=True, enable_shrink=True)
    rows = [torch.from_numpy(rng.normal(size=(MAX_TOKENS, HIDDEN)).astype(np.float32)).bfloat16() for _ in range(ranks)]
    seeds = rng.integers(0, 1 << 30, ranks)
    routes = [uniform(MAX_TOKENS, EXPERTS, TOPK, seed=int(seed)).masked(0.2, seed=1) for seed in seeds]
    idx, weights = [to_torch(route.topk_idx) for route in routes], [to_torch(route.topk_weights) for route in routes]

    def check_masks(buffer, expected):
        status = torch.full((ranks,), 9, dtype=torch.int32)
        buffer.low_latency_query_mask_buffer(status)
        assert set(status.nonzero().squeeze(-1).tolist()) == expected and set(status.tolist()) <= {0, 1}
        return status

    def call(buffer, rank):
        gone = set()

        def fails_now(api):
            gone.add(fails[api])
            return rank in gone

        for turn in range(3):
            fp8 = turn == 1
            if fails_now("dispatch"):
                break
            got = buffer.low_latency_dispatch(rows[rank], idx[rank], MAX_TOKENS, EXPERTS, use_fp8=fp8)
            recv_x, count, handle, *_ = got
            status = check_masks(buffer, gone)
            for expert in range(EXPERTS // ranks):
                number = rank * (EXPERTS // ranks) + expert
                chosen = [int((idx[s] == number).sum()) if status[s] == 0 else 0 for s in range(ranks)]
                assert count[expert] == sum(chosen)
                assert (handle[1][expert] & (2**32 - 1)).tolist() == chosen
            if fails_now("combine"):
                break
            y = recv_x if not fp8 else torch.ones(EXPERTS // ranks, ranks * MAX_TOKENS, HIDDEN).bfloat16()
            combined, *_ = buffer.low_latency_combine(y, idx[rank], weights[rank], handle)
            status = check_masks(buffer, gone)
            kept = torch.isin(owner_of(idx[rank], ranks), torch.tensor(sorted(set(range(ranks)) - gone)))
            weight = (weights[rank] * kept).sum(1, keepdim=True)
            want = weight * (torch.ones(HIDDEN) if fp8 else rows[rank].float())
            assert not combined.isnan().any()
            assert calc_diff(combined.float().numpy(), want.numpy()) < 1e-5
            assert not combined[~kept.any(1)].any()
            if fails_now("clean"):
                break
            buffer.clean_low_latency_buffer(MAX_TOKENS, HIDDEN, EXPERTS)
            check_masks(buffer, gone)
        # Of three turns each has five runs of the world; who has failed lets the others go on.
        while runs_of[rank] < 15:
            rig.run_world()
        return turn

    runs_of = [0] * ranks
    run_world = rig.run_world

    def counted():
        runs_of[rig._rank.number] += 1
        run_world()

    rig.run_world = counted
    assert rig.each(call) == [2, 0, 0, 0]
    assert runs_of == [15] * ranks
    assert not any(engine.link.report for engine in rig.inner.engines), "nothing is reported of who is left out"
