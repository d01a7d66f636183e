"""Puts of 8 bytes to a megabyte on a GPU: until the peer has seen put and signal, and how fast many go in a row.

Leans on bare. Kernel: cuda/kernels/put_sizes.cu, through the HCA of hca_engine.cuh, both ends on one GPU: a warp plays
the NIC of each end, so large puts show how fast a warp copies, not what a link carries. All is measured; afterwards
every byte at the peer is compared with its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.device.handle import QP_HANDLE
from rdmakit.errors import BadArgument
from rdmakit.gpu.bare import KEY, MEMORY, BareQueue, GpuPlatform, Platform, bare_hca, bare_report

__all__ = ["MOST_BYTES", "put_sizes", "sizes_between"]

_WORDS = ("last_source", "last_data", "mine", "ns", "row_ns", "wrong")
# put_sizes.cu; words of 8 bytes throughout, so nothing lies between them
PUT_END = np.dtype([("qp", QP_HANDLE), *((name, MEMORY) for name in ("to", "word", "from")),
                    *((name, "<u8") for name in _WORDS)])  # fmt: skip
MOST_BYTES = 64 << 20
_FIRST_QPN = 0x4C00
_LOG_SQ = 8


def sizes_between(begin: int, end: int, factor: int) -> list[int]:
    """`begin`, `begin * factor`, … and `end` last. BadArgument unless 8 <= begin <= end, multiples of 8.

    >>> sizes_between(8, 1 << 20, 16)
    [8, 128, 2048, 32768, 524288, 1048576]
    """
    if not 8 <= begin <= end <= MOST_BYTES or begin % 8 or end % 8:
        raise BadArgument("sizes that puts cannot have", value=f"{begin} … {end}",
                          rule=f"multiples of 8, from 8 to {MOST_BYTES} bytes",
                          remedy="--begin 8 --end 1048576")  # fmt: skip
    if factor < 2:
        raise BadArgument("sizes that do not grow", value=factor, rule="a factor of 2 at least", remedy="--factor 4")
    found = [begin]
    while found[-1] * factor < end:
        found.append(found[-1] * factor)
    return found if found[-1] == end else [*found, end]


def put_sizes(
    sizes: Sequence[int], platform: Platform | None = None, *, seed: int = 1, most_rounds: int = 1000
) -> dict[str, Any]:
    """Each size: `sizes` with bytes, `us` (put and signal seen, half of a round trip), `gbs` of puts in a row, `wrong`.

    `wrong` counts bytes that differ from their source, and rounds whose data was not there with its signal.
    """
    platform = platform or GpuPlatform()
    rng = np.random.default_rng(seed)
    rows = []
    for nbytes in sizes:
        rounds = min(most_rounds, max(20, (64 << 20) // nbytes))
        _once(platform, rng, nbytes, 1, 3, 3)  # code and pages come near
        rows.append(_once(platform, rng, nbytes, max(1, rounds // 10), rounds + max(1, rounds // 10), rounds))
    ok = all(row["wrong"] == 0 for row in rows)
    return {
        "ok": ok,
        "figures": {f"put_{row['bytes']}_{unit}": row[unit] for row in rows for unit in ("us", "gbs")},
        "sizes": rows,
        "lines": _table(rows),
    }


def _once(
    platform: Platform, rng: np.random.Generator, nbytes: int, warm: int, rounds: int, in_a_row: int
) -> dict[str, Any]:
    memory = platform.memory(2 * BareQueue.bytes_for(_LOG_SQ) + 4 * nbytes + (1 << 16))
    report, report_at = bare_report(memory)
    ends, ends_at = memory.take(2, PUT_END)
    registers = [memory.take(16, np.uint64)[1] for _ in range(2)]
    words = [memory.take(16, np.uint64)[1] for _ in range(2)]
    sources, sinks = ([memory.take(nbytes, np.uint8) for _ in range(2)] for _ in range(2))
    queues = [
        BareQueue.lay_out(memory, ends[i]["qp"], _FIRST_QPN + i, _LOG_SQ, report_at, register=registers[i])
        for i in range(2)
    ]
    for i in range(2):
        sources[i][0][:] = rng.integers(0, 256, nbytes, dtype=np.uint8)
        sinks[i][0][:] = 0x6E
        ends[i]["to"], ends[i]["word"] = (sinks[1 - i][1], KEY), (words[1 - i], KEY)
        ends[i]["from"], ends[i]["mine"] = (sources[i][1], KEY), words[i]
        ends[i]["last_source"], ends[i]["last_data"] = sources[i][1] + nbytes - 8, sinks[i][1] + nbytes - 8
    hcas = bare_hca(memory, queues, registers, report_at, "dbrec")
    memory.upload()
    platform.run("put_sizes", 3, 64, (hcas, ends_at, nbytes, warm, rounds, in_a_row))
    memory.download()
    report.raise_for_status()
    wrong = sum(int(np.count_nonzero(sources[i][0] != sinks[1 - i][0])) for i in range(2)) + int(ends["wrong"].sum())
    row_us = float(ends[0]["row_ns"]) / 1e3 / in_a_row
    return {
        "bytes": nbytes,
        "us": float(ends[0]["ns"]) / 1e3 / (2 * (rounds - warm)),
        "row_us": row_us,
        "gbs": nbytes / row_us / 1e3 if row_us else 0.0,
        "wrong": wrong,
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """In the columns of nccl-tests; algorithm and bus bandwidth of a put are one."""
    lines = [
        "#                                 put + signal     puts in a row",
        f"#{'size':>11} {'count':>9} {'type':>7} {'time':>14} {'time':>10} {'algbw':>9} {'busbw':>9} {'#wrong':>7}",
        f"#{'(B)':>11} {'(elems)':>9} {'':>7} {'(us)':>14} {'(us)':>10} {'(GB/s)':>9} {'(GB/s)':>9}",
    ]
    lines += [
        f" {row['bytes']:>11} {row['bytes'] // 8:>9} {'uint64':>7} {row['us']:>14.2f} {row['row_us']:>10.2f}"
        f" {row['gbs']:>9.2f} {row['gbs']:>9.2f} {row['wrong']:>7}"
        for row in rows
    ]
    return lines
