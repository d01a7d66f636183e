"""One rank of a Buffer over RDMA devices: DeepEP's calls on fresh inputs, checked with NumPy.

    RDMAKIT_DEVICES=mlx5_0,mlx5_1 python tests/gpu/device_hosts_program.py --meet file:/tmp/new --rank 0 --ranks 2

and the same with --rank 1, here or on another host. A rank is a host of its own, unless RDMAKIT_RANKS_PER_HOST says
more. On one machine ranks may share a GPU: those of a host do, with --gpus spread each takes the next.
RDMAKIT_KERNELS=cpu does the same on the CPU runner. Each rank makes everybody's inputs from the seed, so it knows what
it must receive, bit for bit. Exit status 0, and "all right", when all of it is so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "any"), str(HERE.parents[1] / "unit")]
os.environ.setdefault("RDMAKIT_RANKS_PER_HOST", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from deepep_rig import other_rows, to_numpy, to_torch  # noqa: E402
from moe import make_inputs  # noqa: E402

from rdmakit.connect import meet  # noqa: E402
from rdmakit.ep import reference  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402

LOCAL = int(os.environ["RDMAKIT_RANKS_PER_HOST"])


def same(what: str, tensor: torch.Tensor, array: Any) -> None:
    """Bit for bit."""
    found, wanted = to_numpy(tensor.cpu()), np.ascontiguousarray(array)
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} {found.shape} have another shape than NumPy's {wanted.shape}")
    if found.tobytes() == wanted.tobytes():
        return
    ours, theirs = (np.frombuffer(each.tobytes(), np.uint8).reshape(len(each), -1) for each in (found, wanted))
    wrong = np.flatnonzero((ours != theirs).any(1))
    row = int(wrong[0])
    columns = np.flatnonzero(np.ravel(found[row] != wanted[row]))
    raise AssertionError(
        f"{what} {found.shape} differ from NumPy's in {len(wrong)} rows, {wrong[:16].tolist()} …; row {row} in "
        f"{len(columns)} places from {columns[:1].tolist()} on: {np.ravel(found[row])[columns[:4]].tolist()}, and "
        f"should be {np.ravel(wanted[row])[columns[:4]].tolist()}"
    )


class Rank:
    """Calls of one rank. `rows(array)`: a tensor where the Buffer wants it."""

    def __init__(self, buffer: Buffer, options: argparse.Namespace) -> None:
        self.buffer, self.options, self.rank = buffer, options, options.rank
        self.tokens = [max(options.tokens - 7 * rank, 1) for rank in range(options.ranks)]

    def rows(self, array: Any) -> torch.Tensor:
        return to_torch(array).to(self.buffer.device)

    def inputs(self, seed: int) -> Any:
        o = self.options
        return make_inputs(self.tokens, o.hidden, o.experts, o.topk, seed)

    def normal(self, seed: int, fp8: bool) -> None:
        """Layout, dispatch, one of other rows with its handle, combine with weights."""
        o, rank, buffer = self.options, self.rank, self.buffer
        x, idx, weights = self.inputs(seed)
        given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
        truths = [reference.dispatch(given, idx, weights, r, o.experts) for r in range(o.ranks)]
        rng = np.random.default_rng(seed)
        y = [rng.standard_normal((len(t.handle.src_token), o.hidden)).astype(x[0].dtype) for t in truths]
        then = other_rows(given)
        rows, others = (tuple(map(self.rows, x[rank])) if fp8 else self.rows(x[rank]) for x in (given, then))
        choices, factors = self.rows(idx[rank].astype(np.int64)), self.rows(weights[rank])
        per_rank, per_host, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices, o.experts)
        got = buffer.dispatch(rows, None, per_rank, per_host, in_rank, per_expert, choices, factors)
        again = buffer.dispatch(others, handle=got[4])[0]
        sums, summed, _ = buffer.combine(self.rows(y[rank]), got[4], topk_weights=got[2])
        want = truths[rank]
        second = reference.dispatch(then, idx, weights, rank, o.experts)
        for what, found, true in (("rows", got[0], want), ("rows of a route used again", again, second)):
            for part, truth in zip(found, true.recv_x, strict=True) if fp8 else ((found, true.recv_x),):
                same(what, part, truth)
        same("choices", got[1], want.recv_topk_idx.astype(np.int64))
        same("weights", got[2], want.recv_topk_weights)
        assert got[3] == [int(n) for n in want.num_recv_tokens_per_expert], got[3]
        handles, came = [t.handle for t in truths], [t.recv_topk_weights for t in truths]
        wanted, wanted_weights = reference.combine(y, handles, rank, self.tokens[rank], came, LOCAL)
        same("sums", sums, wanted)
        same("summed weights", summed, wanted_weights)

    def low_latency(self, seed: int, fp8: bool, hooks: bool) -> None:
        """Dispatch and combine, whole or with their hooks."""
        o, rank, buffer = self.options, self.rank, self.buffer
        x, idx, weights = self.inputs(seed)
        want = [reference.low_latency_dispatch(x, idx, r, o.experts, o.tokens, use_fp8=fp8) for r in range(o.ranks)]
        rng = np.random.default_rng(seed)
        y = [rng.standard_normal(truth.packed_recv_x.shape).astype(x[0].dtype) for truth in want]
        choices, factors = self.rows(idx[rank].astype(np.int64)), self.rows(weights[rank])
        got, count, handle, _, hook = buffer.low_latency_dispatch(
            self.rows(x[rank]), choices, o.tokens, o.experts, use_fp8=fp8, return_recv_hook=hooks
        )
        if hooks:
            hook()
        sums, _, hook = buffer.low_latency_combine(self.rows(y[rank]), choices, factors, handle, return_recv_hook=hooks)
        if hooks:
            hook()
        truth = want[rank]
        same("counts", count, truth.packed_recv_count)
        same("ranges", handle[1], truth.packed_recv_layout_range)
        rows, scales = got if fp8 else (got, None)
        for e, n in enumerate(int(n) for n in truth.packed_recv_count):
            same(f"rows of expert {e}", rows[e, :n], truth.packed_recv_x[e, :n])
            same(f"sources of expert {e}", handle[0][e, :n], truth.packed_recv_src_info[e, :n])
            if fp8:
                same(f"scales of expert {e}", scales[e, :n], truth.packed_recv_scales[e, :n])
        same("sums", sums, reference.low_latency_combine(y, want, idx[rank], weights[rank], rank, o.experts))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meet", required=True)
    for name in ("rank", "ranks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    sizes = {"tokens": 96, "hidden": 1024, "experts": 8, "topk": 4, "qps": 4, "rounds": 2, "seed": 1}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gpus", choices=["host", "spread"], default="host")
    options = parser.parse_args()
    if torch.cuda.is_available():
        number = options.rank // LOCAL if options.gpus == "host" else options.rank
        torch.cuda.set_device(number % torch.cuda.device_count())
    meeting = meet(options.meet, options.rank, options.ranks, timeout_s=120)
    row = 2 * options.hidden + 256
    hint = Buffer.get_low_latency_rdma_size_hint(options.tokens, options.hidden, options.ranks, options.experts)
    buffer = Buffer(None, comm=meeting, num_nvl_bytes=2 * options.ranks * options.tokens * row,
                    num_rdma_bytes=max(hint, 32 * row * 2 * options.ranks * options.qps), low_latency_mode=True,
                    num_qps_per_rank=options.qps, explicitly_destroy=True)  # fmt: skip
    rank = Rank(buffer, options)
    calls = [("normal BF16", rank.normal, (False,)), ("normal FP8", rank.normal, (True,))]
    for fp8 in (False, True):
        for hooks in (False, True):
            name = f"low latency {'FP8' if fp8 else 'BF16'}, {'hooks' if hooks else 'whole'}"
            calls.append((name, rank.low_latency, (fp8, hooks)))
    for turn in range(options.rounds):
        for number, (name, call, how) in enumerate(calls):
            began = time.perf_counter()
            call(options.seed + 100 * turn + number, *how)
            if options.rank == 0:
                print(f"right: {name}, {1e3 * (time.perf_counter() - began):.0f} ms", flush=True)
    buffer.runtime.link.report.raise_for_status()
    buffer.destroy()
    print(f"rank {options.rank}: all right; seed {options.seed}", flush=True)


if __name__ == "__main__":
    main()
