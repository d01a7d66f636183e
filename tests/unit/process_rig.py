"""Ranks as processes of their own, as torchrun starts them: each has a Buffer, kernels on the CPU runner.

Whoever tests names functions of this module, which run in every rank: `ranks.each(normal, seed, …)`. Outputs and heaps
are poisoned; what comes is compared with NumPy's truth in the rank itself, bit for bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "any")]

HIDDEN, TOPK, MOST = 512, 3, 20
SIZES = {"num_nvl_bytes": 1 << 21, "num_rdma_bytes": 1 << 22, "low_latency_mode": True, "num_qps_per_rank": 4}
POISON = 0xA5


class Ranks:
    """`environments`: one for each rank, on top of this process's."""

    def __init__(self, environments):
        spawn = multiprocessing.get_context("spawn")
        self.lines, self.processes = [], []
        for rank, environment in enumerate(environments):
            here, there = spawn.Pipe()
            arguments = (rank, len(environments), {"RDMAKIT_KERNELS": "cpu", **environment}, there)
            process = spawn.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self.lines.append(here)
            self.processes.append(process)

    def __len__(self):
        return len(self.processes)

    def all(self, function, *arguments, seconds=150):
        """`function(rank, *arguments)` of all at once: ("ok", result), ("failed", kind, text), None of the dead."""
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.send((function, arguments))
        deadline, found = time.monotonic() + seconds, []
        for line in self.lines:
            answer = None
            with contextlib.suppress(EOFError, OSError):
                assert line.poll(max(0.0, deadline - time.monotonic())), f"a rank has not answered: {found}"
                answer = line.recv()
            found.append(answer)
        return found

    def each(self, function, *arguments, **options):
        """Their results, by rank."""
        found = self.all(function, *arguments, **options)
        assert all(answer is not None and answer[0] == "ok" for answer in found), found
        return [answer[1] for answer in found]

    def dead(self):
        """Whether any process has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def end(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(30)


class Rank:
    """What a rank's process knows."""

    def __init__(self, rank, ranks):
        self.rank, self.ranks, self.buffer, self.experts_each = rank, ranks, None, 2


def _serve(rank, ranks, environment, line):
    os.environ.update(environment)
    here = Rank(rank, ranks)
    while True:
        try:
            function, arguments = line.recv()
        except EOFError:
            return
        try:
            line.send(("ok", function(here, *arguments)))
        except Exception as error:
            line.send(("failed", type(error).__name__, str(error)))


# ---- what ranks do
def make(here, place, options):
    """A Buffer, all of whose rows and outputs are poisoned. How many hosts it is on."""
    from rdmakit.connect import meet
    from rdmakit.ep import Buffer

    meeting = meet(f"file:{place}", here.rank, here.ranks, timeout_s=60)
    here.buffer = Buffer(None, comm=meeting, **{**SIZES, **options})
    _poison(here.buffer)
    return here.buffer._hosts


def _poison(buffer):
    import torch

    pool = buffer.runtime.pool
    memory = buffer.get_local_buffer_tensor(torch.uint8)
    memory[pool.begin : pool.begin + pool.nbytes].fill_(POISON)
    backend = buffer._backend
    if not hasattr(backend, "empty_as_it_is"):
        backend.empty_as_it_is = backend.empty

        def empty(*arguments):
            found = backend.empty_as_it_is(*arguments)
            found.view(torch.uint8).fill_(POISON) if found.numel() else None
            return found

        backend.empty = empty


def destroy(here):
    here.buffer.destroy()


def other_experts(here, each):
    """So many of each rank from now on."""
    here.experts_each = each


def environment_says(here, name, value):
    os.environ[name] = value


def left_behind(here):
    """Names of ours in shared memory; files without a name that are open."""
    files = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_link(name)]
    return names_left(), sorted(file for file in files if "memfd:rdmakit" in file)


def names_left():
    """Names of ours in shared memory."""
    return [name for name in os.listdir("/dev/shm") if "rdmakit" in name]


def _is_link(name):
    return os.path.islink(f"/proc/self/fd/{name}")


def _inputs(here, seed):
    from moe import make_inputs

    tokens = [int(n) for n in np.random.default_rng(seed).integers(0, MOST + 1, here.ranks)]
    experts = here.experts_each * here.ranks
    return tokens, experts, *make_inputs(tokens, HIDDEN, experts, TOPK, seed)


def _same(tensor, array, what):
    from deepep_rig import to_numpy

    found, want = to_numpy(tensor), np.ascontiguousarray(array)
    assert found.shape == want.shape and found.dtype == want.dtype, (what, found.shape, found.dtype, want.shape)
    assert found.tobytes() == want.tobytes(), what


def normal(here, seed, fp8, times=1):
    """Layout, dispatch, a cached dispatch, combine; `times` with fresh data."""
    for turn in range(times):
        _normal(here, seed + 1000 * turn, fp8)


def _normal(here, seed, fp8):
    from deepep_rig import other_rows, to_torch

    from rdmakit.ep import reference

    buffer, rank, ranks = here.buffer, here.rank, here.ranks
    tokens, experts, x, idx, weights = _inputs(here, seed)
    given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
    truths = [reference.dispatch(given, idx, weights, r, experts) for r in range(ranks)]
    rng = np.random.default_rng(seed + 1)
    y = [rng.standard_normal((len(t.handle.src_token), HIDDEN)).astype(x[0].dtype) for t in truths]
    then = other_rows(given)
    rows, others = (tuple(map(to_torch, each[rank])) if fp8 else to_torch(each[rank]) for each in (given, then))
    choices, factors = to_torch(idx[rank].astype(np.int64)), to_torch(weights[rank])
    per_rank, per_host, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices, experts)
    got = buffer.dispatch(rows, None, per_rank, per_host, in_rank, per_expert, choices, factors)
    again = buffer.dispatch(others, handle=got[4])[0]
    sums, summed, _ = buffer.combine(to_torch(y[rank]), got[4], topk_weights=got[2])
    want = truths[rank]
    second = reference.dispatch(then, idx, weights, rank, experts)
    for name, found, true in (("dispatch", got[0], want), ("cached dispatch", again, second)):
        for part, truth in zip(found, true.recv_x, strict=True) if fp8 else ((found, true.recv_x),):
            _same(part, truth, name)
    _same(got[1], want.recv_topk_idx.astype(np.int64), "choices")
    _same(got[2], want.recv_topk_weights, "weights")
    assert got[3] == [int(n) for n in want.num_recv_tokens_per_expert]
    handles, came = [t.handle for t in truths], [t.recv_topk_weights for t in truths]
    each = None if buffer._hosts == 1 else ranks // buffer._hosts
    wanted, wanted_weights = reference.combine(y, handles, rank, tokens[rank], came, each)
    _same(sums, wanted, "combine")
    _same(summed, wanted_weights, "weights of combine")


def low_latency(here, seed, fp8, hooks):
    from deepep_rig import to_torch
    from nvlink_checks import two_roundings

    from rdmakit.ep import reference

    buffer, rank, ranks = here.buffer, here.rank, here.ranks
    _, experts, x, idx, weights = _inputs(here, seed)
    want = [reference.low_latency_dispatch(x, idx, r, experts, MOST, use_fp8=fp8) for r in range(ranks)]
    rng = np.random.default_rng(seed + 1)
    y = [np.full(truth.packed_recv_x.shape, np.nan, x[0].dtype) for truth in want]  # where no row came
    for rows, truth in zip(y, want, strict=True):
        for e, n in enumerate(truth.packed_recv_count):
            rows[e, :n] = rng.standard_normal((n, HIDDEN))
    choices, factors = to_torch(idx[rank].astype(np.int64)), to_torch(weights[rank])
    got, count, handle, _, hook = buffer.low_latency_dispatch(
        to_torch(x[rank]), choices, MOST, experts, use_fp8=fp8, return_recv_hook=hooks
    )
    if hooks:
        hook()
    sums, _, hook = buffer.low_latency_combine(to_torch(y[rank]), choices, factors, handle, return_recv_hook=hooks)
    if hooks:
        hook()
    truth = want[rank]
    _same(count, truth.packed_recv_count, "count")
    _same(handle[1], truth.packed_recv_layout_range, "ranges")
    rows, scales = got if fp8 else (got, None)
    for e, n in enumerate(int(n) for n in truth.packed_recv_count):
        _same(rows[e, :n], truth.packed_recv_x[e, :n], "rows")
        _same(handle[0][e, :n], truth.packed_recv_src_info[e, :n], "sources")
        if fp8:
            _same(scales[e, :n], truth.packed_recv_scales[e, :n], "scales")
    if buffer._hosts == 1:  # by shared memory: each rank's rows are added up there
        total = two_roundings(y, want, idx, weights, ranks, rank, experts // ranks)
    else:
        total = reference.low_latency_combine(y, want, idx[rank], weights[rank], rank, experts)
    _same(sums, total, "sums")


def _miscounted(here, seed):
    """What a rank is told whose counts are not those of its tokens."""
    from deepep_rig import to_torch

    from rdmakit.errors import RdmakitError

    _, experts, x, idx, weights = _inputs(here, seed)
    choices, factors = to_torch(idx[here.rank].astype(np.int64)), to_torch(weights[here.rank])
    per_rank, per_host, per_expert, in_rank, _ = here.buffer.get_dispatch_layout(choices, experts)
    try:
        counts = per_rank + 1, per_host, in_rank, per_expert
        here.buffer.dispatch(to_torch(x[here.rank]), None, *counts, choices, factors)
    except RdmakitError as error:
        return type(error).__name__, str(error)
    raise AssertionError("wrong counts were taken")


def all_but_one(here, seed, absent, how):
    """Calls that one rank stays away from: it dies, its Buffer goes, or its kernel fails. How long the others waited,
    and the error."""
    from rdmakit.errors import CompletionError, HangError

    if here.rank == absent:
        time.sleep(0.3)  # the others wait for it by now
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "fails":
            return _miscounted(here, seed)
        here.buffer = None
        return None
    began = time.monotonic()
    try:
        _normal(here, seed, False)
    except (CompletionError, HangError) as error:
        missed, waits = getattr(error, "ranks", ()), getattr(error, "report", None)
        return time.monotonic() - began, type(error).__name__, missed, str(error), len(waits.waits) if waits else 0
    raise AssertionError("it came without that rank")
