"""How fast SMs copy, by loads and stores and by bulk copies (TMA): here, to and from a peer, over the number of SMs.

Leans on bench_machine. Kernel: cuda/kernels/copy_rate.cu. Bytes are counted once; copies are compared with sources.

>>> from rdmakit.gpu import bench_copies
>>> bench_copies.copies()["figures"]  # doctest: +SKIP
{'copy_bulk_local_24sm_gbs': …, 'copy_bulk_push_24sm_gbs': …, …}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.device.handle import WATCH
from rdmakit.gpu.bench_machine import Call, GpuMachine, Machine, Region

__all__ = ["SMS", "WAYS", "copies"]

SMS = 1, 4, 8, 12, 16, 24, 32, 64
# Way → the place that is read, the place that is written. The first GPU's SMs do the work.
WAYS = {"local": ("local", "local"), "push": ("local", "peer"), "pull": ("peer", "local")}
HOWS = {"vector": (0, 16, 8192), "bulk": (1, 4, 7168)}  # bulk?, warps a block, bytes a chunk
_STAGES = 4  # kCopyStages of copy_rate.cu
_EACH_SM = 16 << 20  # bytes: sources and sinks of four SMs and more are larger than the L2


def copies(
    machine: Machine | None = None, *, sms: Sequence[int] = SMS, each: int = _EACH_SM, repeats: int = 5, seed: int = 1
) -> dict[str, Any]:
    """Every way and how over `sms`; `each`: bytes that a SM copies. `push_both`: two GPUs push at the same time."""
    machine = machine or GpuMachine()
    rng = np.random.default_rng(seed)
    counts = [n for n in sms if n <= machine.processors]
    nbytes = each * max(counts)
    report = machine.report()
    watch = np.zeros((), WATCH)
    watch["report"] = report.address
    places = sorted({place for way in WAYS.values() for place in way} - set(machine.missing))
    content = rng.integers(0, 1 << 63, nbytes // 8, dtype=np.uint64)
    sources, sinks = {}, {}
    for place in places:
        sources[place], sinks[place] = machine.region(place, nbytes), machine.region(place, nbytes)
        sources[place].write(content)
    rows: list[dict[str, Any]] = []

    def call(how: str, to: Region, source: Region, blocks: int, gpu: int) -> Call:
        bulk, warps, chunk = HOWS[how]
        args = (to.address, source.address, each, chunk, bulk, watch[()])
        return Call("copy_rate", blocks, 32 * warps, args, gpu, bulk * warps * _STAGES * chunk)

    def measure(way: str, how: str, pairs: list[tuple[Region, Region, int]], blocks: int) -> None:
        ok, seconds = True, []
        for number in range(repeats + 1):
            for to, _, _ in pairs:
                to.fill(0x6E)
            took = machine.run([call(how, to, source, blocks, gpu) for to, source, gpu in pairs])
            report.raise_for_status()
            if number:  # the first brings code near
                seconds.append(max(took))
            else:
                ok = all(machine.same(to, source, blocks * each) for to, source, _ in pairs)
        took_s = float(np.median(seconds))
        rate = blocks * each / took_s / 1e9 if took_s else 0.0
        rows.append({"way": way, "how": how, "sms": blocks, "us": 1e6 * took_s, "gbs": rate, "ok": ok})

    for way, (source, sink) in WAYS.items():
        if {source, sink} & set(machine.missing):
            continue
        for how in HOWS:
            for blocks in counts:
                measure(way, how, [(sinks[sink], sources[source], 0)], blocks)
    if "peer" in sources:
        both = [(sinks["peer"], sources["local"], 0), (sinks["local"], sources["peer"], 1)]
        for how in HOWS:
            for blocks in counts:
                measure("push_both", how, both, blocks)
    return {
        "ok": all(row["ok"] for row in rows),
        "device": machine.device,
        "figures": {f"copy_{row['how']}_{row['way']}_{row['sms']}sm_gbs": row["gbs"] for row in rows},
        "copies": rows,
        "lines": _table(rows, counts, each) + [f"left out, {place}: {why}" for place, why in machine.missing.items()],
        "missing": dict(machine.missing),
    }


def _table(rows: list[dict[str, Any]], counts: list[int], each: int) -> list[str]:
    lines = [f"GB/s (each way, bytes counted once; {each >> 10} KiB a SM)", ""]
    lines.append(f"{'copy':<20}" + "".join(f"{n:>8}" for n in counts) + "  SMs   result")
    for name in dict.fromkeys((row["way"], row["how"]) for row in rows):
        mine = [row for row in rows if (row["way"], row["how"]) == name]
        right = "right" if all(row["ok"] for row in mine) else "WRONG"
        lines.append(f"{' '.join(name):<20}" + "".join(f"{row['gbs']:>8.1f}" for row in mine) + f"        {right}")
    return lines
