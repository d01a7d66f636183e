"""A rank of a benchmark on GPUs: memory, checks, and times of the slower rank.

Leans on ep.nvlink, ep.tensors, torch.distributed. Times are those of the slower rank: events around the operation,
behind a barrier of the ranks' streams, many iterations queued while the GPUs are kept busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.cli.bench_ep import LINK_GBS
from rdmakit.ep import nvl_memory, tensors
from rdmakit.ep.nvlink import Nvlink
from rdmakit.ep.rendezvous import introduce

__all__ = ["BenchRank"]

HOLD_CYCLES = 60_000_000  # what keeps a GPU busy while the host queues: some 35 ms


class BenchRank:
    """Joins torchrun's group and makes an engine with room for `args`' operations; gathers figures by name."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rdmakit.gpu.peer import PeerLink

        self.args = args
        self.torch: Any = tensors.torch()
        self.dist = self.torch.distributed
        self.dist.init_process_group("cpu:gloo,cuda:nccl")
        self.rank, self.ranks = self.dist.get_rank(), self.dist.get_world_size()
        self.torch.cuda.set_device(self.rank % self.torch.cuda.device_count())
        self.stream = self.torch.cuda.Stream()
        self.at = int(self.stream.cuda_stream)
        self.group = introduce(self.dist.group.WORLD, None)
        ll = nvl_memory.low_latency_bytes(self.ranks, args.ll_tokens, args.hidden)
        room = 8 * self.ranks * args.tokens * (2 * args.hidden + 256) + (64 << 20)
        self.link = PeerLink(self.rank, self.ranks, room + ll, self.group.all_gather)
        self.engine = Nvlink(self.link, low_latency_bytes=ll)
        self.figures: dict[str, float] = {}
        self.floors: dict[str, dict[str, float]] = {}
        self.wrong: list[str] = []
        self.sms: dict[str, int | None] = {}  # of each operation, in the order of the report; None: not ours to choose

    # ---- memory
    def put(self, array: Any) -> Any:
        """A NumPy array on the GPU; formats that torch's bridge does not know go as bytes."""
        raw = np.ascontiguousarray(array)
        kept = raw if raw.dtype in (np.int64, np.int32, np.float32, np.bool_) else raw.view(np.uint8)
        return self.torch.from_numpy(kept.copy()).cuda()

    def poisoned(self, *shape: int, dtype: str) -> Any:
        return self.torch.full(shape, 0x6E, dtype=getattr(self.torch, dtype), device="cuda")

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        flat = tensors.backend().bytes_at(address, nbytes, self.torch.device("cuda"), None)
        found: np.ndarray[Any, Any] = flat.cpu().numpy().view(dtype).reshape(shape)
        return found

    def poison(self, address: int, nbytes: int) -> None:
        """Queued on the stream; meet the other ranks before one writes there."""
        with self.torch.cuda.stream(self.stream):
            tensors.backend().bytes_at(address, nbytes, self.torch.device("cuda"), None).fill_(0x6E)

    def check(self, operation: str, what: str, got: Any, want: Any) -> None:
        if not np.array_equal(np.asarray(got), np.asarray(want)):
            self.wrong.append(f"{operation}: {what} on rank {self.rank}")

    def wait(self) -> None:
        self.stream.synchronize()
        self.link.report.raise_for_status()

    # ---- time
    def gpu_us(self, operation: Callable[[], Any], iterations: int = 40) -> float:
        """Median over iterations of the slower rank's time."""
        torch = self.torch
        with torch.cuda.stream(self.stream):
            for _ in range(5):
                operation()
            self.wait()
            self.group.barrier()
            pairs = []
            for start in range(0, iterations, 20):  # so that no queue is longer than the GPU is held
                torch.cuda._sleep(HOLD_CYCLES)
                for _ in range(start, min(start + 20, iterations)):
                    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    self.engine.barrier(self.at)
                    begin.record(self.stream)
                    operation()
                    end.record(self.stream)
                    pairs.append((begin, end))
                self.wait()
        mine = [1e3 * begin.elapsed_time(end) for begin, end in pairs]
        return float(np.median(np.max(self.group.all_gather(mine), axis=0)))

    def wall_us(self, operation: Callable[[], Any], iterations: int = 100) -> float:
        """Wall time of a call, many in a row."""
        with self.torch.cuda.stream(self.stream):
            for _ in range(5):
                operation()
            self.wait()
            self.group.barrier()
            begin = time.perf_counter()
            for _ in range(iterations):
                operation()
            self.wait()
            mine = 1e6 * (time.perf_counter() - begin) / iterations
        return float(max(self.group.all_gather(mine)))

    def graph_us(self, operation: Callable[[], Any]) -> float:
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            operation()
        self.wait()
        return self.wall_us(graph.replay)

    def time(
        self, name: str, operation: Callable[[], Any], wire: float, logical: float, sms: int | None, *,
        walls: bool = True,
    ) -> None:  # fmt: skip
        """Figures and floor of an operation that moves `wire` bytes to other ranks, `logical` in all."""
        self.sms[name] = sms
        self.figures[f"{name}_us"] = self.gpu_us(operation)
        if walls:
            self.figures[f"{name}_call_us"] = self.wall_us(operation)
            self.figures[f"{name}_graph_us"] = self.graph_us(operation)
        self.floors[name] = {"us": wire / LINK_GBS / 1e3, "wire": wire, "logical": logical}
