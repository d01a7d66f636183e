"""Which shape of a dispatch is fastest: chunks, bytes under way and pace, each timed on the GPUs of a torchrun group.

    torchrun --nproc-per-node 2 benchmarks/probes/dispatch_shapes.py --out shapes.json

Results are those of `rdmakit bench ep`, checked as there; times are of the kernel alone, counts not included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from rdmakit.cli import bench_ep_rank
from rdmakit.ep import nvlink

CHUNKS = 4096, 8192  # bytes, at most
WINDOWS = 352, 700, 4000  # KiB that all warps have under way to other ranks
PACES = 0, 325, 340, 350, 360, 370, 380  # GB/s, 0: none


class Shapes(bench_ep_rank._Bench):
    """The benchmark's rank, which times shapes where that times an operation."""

    def time(
        self, name: str, operation: Callable[[], Any], wire: float, logical: float, sms: int | None, *,
        walls: bool = True,
    ) -> None:  # fmt: skip
        """Dispatches only: each shape, the fastest first."""
        self.sms[name] = sms
        self.floors[name] = {"us": 1.0, "wire": wire, "logical": logical}
        if "dispatch" not in name or name.startswith("ll"):
            return
        _, kernel = operation.args  # type: ignore[attr-defined]  # counts come first
        kept = nvlink.DISPATCH_CHUNK, nvlink.WINDOW, self.link.pace_gbs
        found = []
        for chunk, window, pace in itertools.product(CHUNKS, WINDOWS, PACES):
            nvlink.DISPATCH_CHUNK, nvlink.WINDOW, self.link.pace_gbs = chunk, window << 10, float(pace)
            self.engine._grids.clear()
            us = min(self.gpu_us(kernel, 20) for _ in range(2))
            (grid,) = self.engine._grids.values()
            found.append((us, f"chunks of {grid.chunk}, {grid.row_warps} warps a block, pace {pace} GB/s"))
        nvlink.DISPATCH_CHUNK, nvlink.WINDOW, self.link.pace_gbs = kept
        self.engine._grids.clear()
        for us, shape in sorted(found)[:8]:
            self.figures[f"{name}: {shape}"] = us
            if self.rank == 0:
                print(f"{name}: {us:.1f} µs, {shape}", flush=True)


if __name__ == "__main__":
    bench_ep_rank._Bench = Shapes  # type: ignore[misc]
    bench_ep_rank.main()
