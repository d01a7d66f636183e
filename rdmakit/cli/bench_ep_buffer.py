"""What `rdmakit.ep.Buffer` adds to the operations that `bench ep` times: checks, tensors, streams, all in Python.

Leans on bench_rank, ep.buffer. For each call: `host`, until it returns while the GPU is busy; `call`, one behind the
other, whichever of host and GPU is slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.cli.bench_rank import HOLD_CYCLES, BenchRank
from rdmakit.ep import reference
from rdmakit.ep.buffer import Buffer

__all__ = ["CALLS", "buffer_calls"]

CALLS = "layout", "bf16_dispatch", "bf16_by_handle", "fp8_by_handle", "bf16_combine", "ll_dispatch", "ll_combine"
_AT_ONCE, _ROUNDS = 10, 5  # calls queued behind what holds the GPU, and how often


def _host_us(bench: BenchRank, call: Callable[[], Any]) -> float:
    """Median until a call returns, of the slower rank; the GPU is held so that nothing waits for room in a queue."""
    found = []
    with bench.torch.cuda.stream(bench.stream):
        for _ in range(_ROUNDS):
            call()
            bench.wait()
            bench.group.barrier()
            bench.torch.cuda._sleep(HOLD_CYCLES)
            begin = time.perf_counter()
            for _ in range(_AT_ONCE):
                call()
            found.append(1e6 * (time.perf_counter() - begin) / _AT_ONCE)
            bench.wait()
    return float(max(bench.group.all_gather(float(np.median(found)))))


def buffer_calls(bench: BenchRank, x: list[Any], idx: list[Any], weights: list[Any], ll: tuple[Any, Any, Any]) -> None:
    """Times of `CALLS` into `bench.figures`. `x`, `idx`, `weights` by rank; `ll`: this rank's three of low latency.

    Rows that come are compared with the reference once. Dispatch of a new routing waits for its counts: no `host` time.
    """
    args, torch, rank, ranks = bench.args, bench.torch, bench.rank, bench.ranks
    tokens, hidden = x[rank].shape
    ll_bytes = Buffer.get_low_latency_rdma_size_hint(args.ll_tokens, hidden, ranks, args.ll_experts)
    room = 4 * ranks * tokens * (2 * hidden + 256) + (64 << 20)
    buffer = Buffer(bench.dist.group.WORLD, room, ll_bytes, low_latency_mode=True)
    given, choices, values = bench.put(x[rank]).view(torch.bfloat16), bench.put(idx[rank]), bench.put(weights[rank])
    fp8, scales = (bench.put(part) for part in reference.quantize_fp8(x[rank]))
    rows8 = fp8.view(torch.float8_e4m3fn), scales
    ll_x, ll_choices, ll_values = bench.put(ll[0]).view(torch.bfloat16), bench.put(ll[1]), bench.put(ll[2])
    with torch.cuda.stream(bench.stream):
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(choices, args.experts)

        def dispatch() -> Any:
            return buffer.dispatch(
                given, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert,
                topk_idx=choices, topk_weights=values,
            )  # fmt: skip

        came, _, _, _, handle, _ = dispatch()
        want = reference.dispatch(x, idx, weights, rank, args.experts)
        bench.wait()
        bench.check("buffer", "rows", came.view(torch.uint8).cpu().numpy(), np.asarray(want.recv_x).view(np.uint8))
        y, _, ll_handle, _, _ = buffer.low_latency_dispatch(ll_x, ll_choices, args.ll_tokens, args.ll_experts,
                                                            use_fp8=False)  # fmt: skip
        calls: dict[str, Callable[[], Any]] = {
            "layout": lambda: buffer.get_dispatch_layout(choices, args.experts),
            "bf16_dispatch": dispatch,
            "bf16_by_handle": lambda: buffer.dispatch(given, handle),
            "fp8_by_handle": lambda: buffer.dispatch(rows8, handle),
            "bf16_combine": lambda: buffer.combine(came, handle),
            "ll_dispatch": lambda: buffer.low_latency_dispatch(ll_x, ll_choices, args.ll_tokens, args.ll_experts),
            "ll_combine": lambda: buffer.low_latency_combine(y, ll_choices, ll_values, ll_handle),
        }
        for name in CALLS:
            bench.figures[f"buffer_{name}_call_us"] = bench.wall_us(calls[name])
            if name != "bf16_dispatch":
                bench.figures[f"buffer_{name}_host_us"] = _host_us(bench, calls[name])
    buffer.destroy()
