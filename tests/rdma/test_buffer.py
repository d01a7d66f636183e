"""Buffer between hosts over real devices: DeepEP's calls on CPU tensors, kernels on the CPU runner, bit for bit.

A host is a machine with a process for each rank where it is used; here it is a thread of one rank, with a world of its
own. Several ranks of a host are processes: test_buffer_processes.py.
"""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
from connect_rig import every_rank, results  # noqa: E402
from deepep_rig import other_rows, to_numpy, to_torch  # noqa: E402
from hosts_rig import shared_out  # noqa: E402
from moe import make_inputs  # noqa: E402

from rdmakit.connect import meet  # noqa: E402
from rdmakit.ep import device_engine, reference  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.errors import BadState, NotAvailable, RankMissing  # noqa: E402

RANKS, TOKENS, HIDDEN, EXPERTS, TOPK, MOST = 2, (17, 11), 512, 8, 3, 20
SIZES = {"num_nvl_bytes": 1 << 21, "num_rdma_bytes": 1 << 22, "low_latency_mode": True, "num_qps_per_rank": 4,
         "ranks_per_host": 1}  # fmt: skip


@pytest.fixture
def hosts(monkeypatch, tmp_path, names):
    """`hosts(function)`: function(buffer, rank) of each host, in a thread of its own; results by rank."""
    devices, here = shared_out(names, RANKS), threading.local()
    monkeypatch.setenv("RDMAKIT_KERNELS", "cpu")
    monkeypatch.setattr(device_engine, "asked_devices", lambda: devices[here.rank])

    def run(function, **options):
        def host(rank):
            here.rank = rank
            meeting = meet(f"file:{tmp_path}/meeting", rank, RANKS, timeout_s=40)
            buffer = Buffer(None, comm=meeting, **{**SIZES, **options})
            found = function(buffer, rank)
            buffer.destroy()
            return found

        return results(RANKS, host)

    return run


def same(tensor, array):
    assert to_numpy(tensor).tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_dispatch_and_combine(hosts, seed, fp8, capfd):
    x, idx, weights = make_inputs(list(TOKENS), HIDDEN, EXPERTS, TOPK, seed)
    given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
    truths = [reference.dispatch(given, idx, weights, rank, EXPERTS) for rank in range(RANKS)]
    rng = np.random.default_rng(seed)
    y = [rng.standard_normal((len(t.handle.src_token), HIDDEN)).astype(x[0].dtype) for t in truths]

    then = other_rows(given)

    def calls(buffer, rank):
        rows, others = (tuple(map(to_torch, each[rank])) if fp8 else to_torch(each[rank]) for each in (given, then))
        choices, factors = to_torch(idx[rank].astype(np.int64)), to_torch(weights[rank])
        per_rank, per_host, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices, EXPERTS)
        got = buffer.dispatch(rows, None, per_rank, per_host, in_rank, per_expert, choices, factors)
        again = buffer.dispatch(others, handle=got[4])[0]
        return got, again, buffer.combine(to_torch(y[rank]), got[4], topk_weights=got[2])

    for rank, (got, again, (sums, summed, _)) in enumerate(hosts(calls)):
        want = truths[rank]
        for found, true in ((got[0], want), (again, reference.dispatch(then, idx, weights, rank, EXPERTS))):
            for part, truth in zip(found, true.recv_x, strict=True) if fp8 else ((found, true.recv_x),):
                same(part, truth)
        same(got[1], want.recv_topk_idx.astype(np.int64))
        same(got[2], want.recv_topk_weights)
        assert got[3] == [int(n) for n in want.num_recv_tokens_per_expert]
        handles, came = [t.handle for t in truths], [t.recv_topk_weights for t in truths]
        wanted, wanted_weights = reference.combine(y, handles, rank, TOKENS[rank], came, 1)
        same(sums, wanted)
        same(summed, wanted_weights)
    said = capfd.readouterr().err
    assert "rdmakit: kernels on the CPU; " in said and "4 queue pairs to 1 peers" in said
    assert "kernels ring the registers" in said or "a proxy on the CPU posts" in said


@pytest.mark.parametrize("hooks", [False, True], ids=["whole", "hooks"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_low_latency(hosts, seed, fp8, hooks):
    x, idx, weights = make_inputs(list(TOKENS), HIDDEN, EXPERTS, TOPK, seed)
    want = [reference.low_latency_dispatch(x, idx, r, EXPERTS, MOST, use_fp8=fp8) for r in range(RANKS)]
    rng = np.random.default_rng(seed)
    y = [rng.standard_normal(truth.packed_recv_x.shape).astype(x[0].dtype) for truth in want]

    def calls(buffer, rank):
        choices, factors = to_torch(idx[rank].astype(np.int64)), to_torch(weights[rank])
        got, count, handle, _, hook = buffer.low_latency_dispatch(
            to_torch(x[rank]), choices, MOST, EXPERTS, use_fp8=fp8, return_recv_hook=hooks
        )
        if hooks:
            hook()
        sums, _, hook = buffer.low_latency_combine(to_torch(y[rank]), choices, factors, handle, return_recv_hook=hooks)
        if hooks:
            hook()
        return got, count, handle, sums

    for rank, (got, count, handle, sums) in enumerate(hosts(calls)):
        truth = want[rank]
        same(count, truth.packed_recv_count)
        same(handle[1], truth.packed_recv_layout_range)
        rows, scales = got if fp8 else (got, None)
        for e, n in enumerate(int(n) for n in truth.packed_recv_count):
            same(rows[e, :n], truth.packed_recv_x[e, :n])
            same(handle[0][e, :n], truth.packed_recv_src_info[e, :n])
            if fp8:
                same(scales[e, :n], truth.packed_recv_scales[e, :n])
        same(sums, reference.low_latency_combine(y, want, idx[rank], weights[rank], rank, EXPERTS))


def test_what_there_is_not(hosts, tmp_path, monkeypatch):
    def calls(buffer, rank):
        with pytest.raises(BadState, match="cannot be masked"):
            buffer.low_latency_update_mask_buffer(0)
        return buffer.runtime.hosts

    assert hosts(calls) == [2, 2]

    def make(rank):
        meeting = meet(f"file:{tmp_path}/shrink", rank, RANKS, timeout_s=20)
        return Buffer(None, comm=meeting, enable_shrink=True, **SIZES)

    errors = every_rank(RANKS, make)
    assert all(isinstance(error, NotAvailable) and "shrink" in str(error) for error in errors), errors
    with pytest.raises(RankMissing, match="rank 0 waited for rank 1"):
        Buffer(None, comm=meet(f"file:{tmp_path}/alone", 0, 2, timeout_s=0.3), **SIZES)
