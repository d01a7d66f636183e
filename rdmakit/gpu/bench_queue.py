"""How fast kernels of a GPU post, and how soon a peer sees a put and its signal, with no NIC and no thread of the host.

Leans on bare. Kernels: cuda/kernels/queue_rate.cu, whose sinks check each WQE's index, opcode and QPN, and
hca_ping.cu, through the HCA of hca_engine.cuh. Every function returns `ok`, `figures` and the `lines` to print; all
is measured, and all memory is the GPU's own.

>>> from rdmakit.gpu import bench_queue
>>> bench_queue.everything()["figures"]  # doctest: +SKIP
{'wqe_per_s_all_sm': …, 'wqe_per_s_shared_qp': …, 'wqe_per_s_one_warp': …, 'put_signal_us': …}
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rdmakit.device.handle import QP_HANDLE
from rdmakit.gpu.bare import (
    KEY,
    MEMORY,
    BareQueue,
    GpuPlatform,
    Platform,
    bare_handles,
    bare_hca,
    bare_report,
    bare_sinks,
)
from rdmakit.layout import Opcode

__all__ = ["all_processors", "everything", "one_warp", "put_signal", "put_signal_stages", "rate", "shared_queue"]

# hca_ping.cu; words of 8 bytes throughout, so nothing lies between them
PING_END = np.dtype([("qp", QP_HANDLE), *((name, MEMORY) for name in ("to", "word", "from")),
                     *((name, "<u8") for name in ("source", "data", "mine", "sum", "wrong", "ns"))])  # fmt: skip
_SERVED = ("heard", "fetched", "placed", "ordered", "signalled", "completed")  # Stage, hca_near.cuh
PING_STAGES = np.dtype([(name, "<u8") for name in ("begun", "rung", "seen", "read", *_SERVED)])  # hca_ping.cu
_FIRST_QPN = 0x4A00
# How an end of the ping posts (PingWay, hca_ping.cu): by the protocol for many threads, as the only one, and that
# without a doorbell record.
WAYS = "shared", "alone", "no_dbr"
# How far its fences reach: "gpu", since everybody here is of one GPU, or "sys", as for peers and readers elsewhere.
SCOPES = "gpu", "sys"
_WARP = 32


def _index_sum(wqes: int) -> int:
    """Of the 16-bit indices of the first `wqes` WQEs."""
    laps, rest = divmod(wqes, 1 << 16)
    return laps * (0xFFFF << 15) + rest * (rest - 1) // 2


def rate(
    platform: Platform, *, queues: int, posters: int, wqes: int, batch: int, log_sq: int, warps_a_block: int
) -> dict[str, Any]:
    """`posters` warps to each of `queues` queue pairs, `wqes` WQEs a queue pair, `batch` to a reservation."""
    memory = platform.memory(queues * (BareQueue.bytes_for(log_sq) + 1024) + (1 << 16))
    report, report_at = bare_report(memory)
    handles, handles_at = bare_handles(memory, queues)
    sinks, sinks_at = bare_sinks(memory, queues)
    for i in range(queues):
        queue = BareQueue.lay_out(memory, handles[i], _FIRST_QPN + i, log_sq, report_at, batch=batch)
        queue.fill_sink(sinks[i], wqes)
    memory.upload()
    blocks = -(-queues * (1 + posters) // warps_a_block)
    seconds = platform.run(
        "queue_rate", blocks, warps_a_block * _WARP, (handles_at, sinks_at, queues, posters, batch, wqes)
    )
    memory.download()
    report.raise_for_status()
    constant = int(Opcode.RDMA_WRITE) + _FIRST_QPN
    want = _index_sum(wqes) + wqes * (constant + np.arange(queues, dtype=np.uint64))
    right = np.array_equal(sinks["sum"], want) and not sinks["wrong"].any() and (sinks["taken"] == wqes).all()
    return {
        "ok": bool(right),
        "rate": queues * wqes / seconds,
        "seconds": seconds,
        "at_once": queues * wqes / max(int(sinks["steps"].sum()), 1),
    }


def _reported(name: str, what: str, best: dict[str, Any]) -> dict[str, Any]:
    line = (
        f"{name}: {best['rate'] / 1e6:.1f} M WQE/s ({what}; {best['seconds'] * 1e3:.1f} ms, {best['at_once']:.0f} "
        f"WQEs at once; measured), sums {'right' if best['ok'] else 'WRONG'}"
    )
    return {"ok": best["ok"], "figures": {name: best["rate"]}, "lines": [line]}


def _best(platform: Platform, choices: list[dict[str, int]]) -> tuple[dict[str, Any], dict[str, int]]:
    """The fastest of several shapes, each run twice; a wrong sum in any of them is what counts."""
    runs = [(rate(platform, **choice), choice) for choice in choices for _ in range(2)]
    wrong = [run for run in runs if not run[0]["ok"]]
    return wrong[0] if wrong else max(runs, key=lambda run: float(run[0]["rate"]))


def all_processors(platform: Platform | None = None, *, wqes: int = 1 << 17) -> dict[str, Any]:
    """Every SM: two queue pairs a block with three posters and a sink each; several shapes, the best of them."""
    platform = platform or GpuPlatform()
    shapes = [
        {"queues": 2 * blocks * platform.processors, "posters": 3, "wqes": wqes, "batch": batch, "log_sq": 9}
        for blocks, batch in ((1, 64), (2, 64), (2, 128))
    ]
    best, how = _best(platform, [{**shape, "warps_a_block": 8} for shape in shapes])
    what = f"{platform.processors} SMs, {how['queues']} QPs, {how['posters']} warps each, {how['batch']} a reservation"
    return _reported("wqe_per_s_all_sm", what, best)


def shared_queue(platform: Platform | None = None, *, wqes: int = 1 << 22, posters: int = 128) -> dict[str, Any]:
    """One queue pair that 128 warps share: they meet at its reservation, its order of publication and its bell."""
    platform = platform or GpuPlatform()
    shape = {"queues": 1, "posters": posters, "wqes": wqes, "log_sq": 14}
    shapes = (32, 3), (64, 3), (64, 1), (96, 3)
    choices = [{**shape, "batch": batch, "warps_a_block": warps} for batch, warps in shapes]
    best, how = _best(platform, choices)
    return _reported("wqe_per_s_shared_qp", f"{posters} warps, one QP, {how['batch']} a reservation", best)


def one_warp(platform: Platform | None = None, *, wqes: int = 1 << 20) -> dict[str, Any]:
    """One warp, one queue pair."""
    platform = platform or GpuPlatform()
    shape = {"queues": 1, "posters": 1, "wqes": wqes, "log_sq": 12}
    best, how = _best(platform, [{**shape, "batch": batch, "warps_a_block": 2} for batch in (32, 64, 128)])
    return _reported("wqe_per_s_one_warp", f"one warp, one QP, {how['batch']} a reservation", best)


def _ping(
    platform: Platform, way: str, warm: int, rounds: int, stages: dict[str, float] | None = None, *, scope: str = "gpu"
) -> tuple[float, bool]:
    """Microseconds from a put to the peer that has seen its signal: half a round trip.

    `stages`: is filled with the time of each stage of a put after its beginning, microseconds. `scope`: of `SCOPES`.
    """
    memory = platform.memory(2 * BareQueue.bytes_for(8) + (1 << 16))
    report, report_at = bare_report(memory)
    ends, ends_at = memory.take(2, PING_END)
    registers = [memory.take(16, np.uint64)[1] for _ in range(2)]
    data, word, source = ([memory.take(16, np.uint64)[1] for _ in range(2)] for _ in range(3))
    near = scope == "gpu"
    queues = [
        BareQueue.lay_out(memory, ends[i]["qp"], _FIRST_QPN + i, 8, report_at, register=registers[i], same_gpu=near)
        for i in range(2)
    ]
    for i in range(2):
        ends[i]["to"], ends[i]["word"] = (data[1 - i], KEY), (word[1 - i], KEY)
        ends[i]["from"], ends[i]["source"] = (source[i], KEY), source[i]
        ends[i]["data"], ends[i]["mine"] = data[i], word[i]
    hcas = bare_hca(memory, queues, registers, report_at, "no_dbr" if way == "no_dbr" else "dbrec")
    sums, sums_at = memory.take(2, PING_STAGES)
    memory.upload()
    args = (hcas, ends_at, WAYS.index(way), warm, rounds)
    if stages is None:
        platform.run("hca_ping", 3, 64, args)
    else:
        platform.run("hca_ping_stages", 3, 64, (*args, sums_at))
    memory.download()
    if stages is not None:
        stages.update(_stages(sums, rounds))
    report.raise_for_status()
    right = (ends["sum"] == rounds * (rounds + 1) // 2).all() and not ends["wrong"].any()
    return float(ends[0]["ns"]) / 1e3 / (2 * (rounds - warm)), bool(right)


def _stages(sums: Any, rounds: int) -> dict[str, float]:
    """Microseconds after a put began, on average of both directions."""
    begun = sum(int(end["begun"]) for end in sums)
    names = ("rung", *_SERVED, "seen", "read")
    return {name: (sum(int(end[name]) for end in sums) - begun) / (2 * rounds) / 1e3 for name in names}


def put_signal_stages(platform: Platform | None = None, *, rounds: int = 5000) -> dict[str, Any]:
    """Where the time of `put_signal` goes: each stage of a put and its signal, with the clock read at each."""
    platform = platform or GpuPlatform()
    lines, ok = [], True
    for way, scope in itertools.product(WAYS, SCOPES):
        stages: dict[str, float] = {}
        us, right = _ping(platform, way, 0, rounds, stages, scope=scope)
        ok = ok and right
        each = ", ".join(f"{name} {at:.2f}" for name, at in stages.items())
        after = f"{each} µs after its beginning ({us:.2f} µs with the clock; measured)"
        lines.append(f"put_signal stages, {way}, {scope} scope: {after}")
    return {"ok": ok, "figures": {}, "lines": lines}


def put_signal(platform: Platform | None = None, *, warm: int = 100, rounds: int = 5000) -> dict[str, Any]:
    """8 bytes and a signal behind them on one queue pair, until the peer has seen the signal, there and back."""
    platform = platform or GpuPlatform()
    hows = {"" if scope == "gpu" else f"_{scope}": scope for scope in SCOPES}
    runs = {
        way + suffix: [_ping(platform, way, warm, rounds, scope=scope) for _ in range(3)]
        for way, (suffix, scope) in itertools.product(WAYS, hows.items())
    }
    ok = all(right for pings in runs.values() for _, right in pings)
    times = {way: min(us for us, _ in pings) for way, pings in runs.items()}
    each = ", ".join(f"{way} {us:.2f}" for way, us in times.items())
    checked = "payload right" if ok else "payload WRONG"
    best = min(times.values())
    line = f"put_signal_us: {best:.2f} µs ({each}; 8 B, half of a round trip, best of 3; measured), {checked}"
    line += "; fences of gpu scope, since poster, HCA and reader share a GPU, but for _sys"
    figures = {"put_signal_us": best} | {f"put_signal_{way}_us": us for way, us in times.items()}
    return {"ok": ok, "figures": figures, "lines": [line]}


PARTS: tuple[Callable[[], dict[str, Any]], ...] = (
    all_processors,
    shared_queue,
    one_warp,
    put_signal,
    put_signal_stages,
)


def _apart(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one part in a process of its own: a fault of its kernels would leave no context for the others."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(part)
        except Exception as error:  # whatever it is, it is this part's result
            name = getattr(part, "__name__", repr(part))
            return {"ok": False, "figures": {}, "lines": [f"{name}: {type(error).__name__}: {error}"]}


def everything(
    tell: Callable[[str], None] = print, parts: Sequence[Callable[[], dict[str, Any]]] = PARTS
) -> dict[str, Any]:
    """All of `parts`, each in a process of its own; one that fails says so and leaves the others alone.

    `tell`: gets each line as soon as it is there. What a part returns besides is merged into the result.
    """
    ok = True
    figures: dict[str, float] = {}
    lines: list[str] = []
    more: dict[str, Any] = {}
    for part in parts:
        done = _apart(part)
        more |= {name: value for name, value in done.items() if name not in ("ok", "figures", "lines")}
        ok = ok and done["ok"]
        figures |= done["figures"]
        lines += done["lines"]
        for line in done["lines"]:
            tell(line)
    return {**more, "ok": ok, "figures": figures, "lines": lines}


def main() -> int:
    """Lines as they come, and all figures as one line of JSON."""
    result = everything()
    print(json.dumps({"ok": result["ok"], "figures": result["figures"]}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
