"""`rdmakit bench signal`: what each strategy of the sequence lock costs, on one path and on many. Modelled time.

Leans on emu and signal. The kernels, WQEs, doorbells and bytes are real; the clock is the emulator's, whose costs are
published or assumed (`rdmakit/emu/hca/timing.hpp`). Every transfer is compared with what was sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["LENGTHS", "NAMES", "signal"]

# A word; a KiB; a token of 7168 FP8 values with its scales.
LENGTHS = (8, 1024, 7392)
NAMES = ("amo", "imm", "eager", "eager-crc", "write", "cqe")
_PIPELINE = 8  # transfers under way
# As the stock kernel, but the clock is read as soon as the last transfer is signed off.
_RECEIVE = """
#include <rdmakit/lock_receive.cuh>
using namespace rdmakit;
struct Row {
    u8* out;
    template <Strategy S> void take(const LockReceiver& lock, const Arrival& arrival) {
        copy_payload<S>(lock, arrival, out);
        out += round_up(arrival.length, 8u);
    }
};
RDMAKIT_KERNEL receive_timed(const LockReceiver* lock, u32 count, u8* out, u64* when) {
    Row row{out};
    for (u64 ticket = 0; ticket < count; ++ticket) {
        if (deliver(*lock, ticket, row) != Status::ok) return;
    }
    if (lane_id() == 0) *when = time_ns();
    finish(*lock);
}
"""


def _measure(name: str, length: int, count: int, many_paths: bool, seed: int) -> dict[str, Any]:
    """`count` transfers of `length` bytes by one lock: virtual time until the last is signed off, counts, correctness."""
    import rdmakit
    from rdmakit.emu.compile import compile_source
    from rdmakit.signal import SequenceLock, handles
    from rdmakit.signal.abi import LOCK_TRANSFER

    strategy, _, crc = name.partition("-")
    world = rdmakit.World(hosts=2, ports=1, policy="timed", seed=seed, data_in_order=True)
    lock = SequenceLock(
        world.open(0).alloc_pd(),
        world.open(1).alloc_pd(),
        strategy=strategy,
        crc=bool(crc),
        slots=2 * _PIPELINE,
        max_payload=length,
        out_of_order=many_paths,
    )
    stride = -(-length // 8) * 8
    source = world.array((count, stride), np.uint8)
    source[...] = np.random.default_rng(seed).integers(0, 256, source.shape, dtype=np.uint8)
    out = world.array((count, stride), np.uint8, 0xA5)
    when, first = world.array(1, np.uint64), world.array(1, np.uint64)
    transfers = world.array(count, LOCK_TRANSFER)
    transfers["offset"], transfers["length"] = np.arange(count) * stride, length
    senders, receivers = handles([lock])
    # As stock kernels are: every step is a primitive, and what lies between them costs nothing (checksums too).
    module = compile_source(_RECEIVE, policy="timed", name="receive_timed.cu", preempted=False).bind(world)
    receive = module.get_function("receive_timed")
    receive(1, 32, (receivers, count, out, when), rank=1)
    world.stock_kernel("lock_send")(1, 32, (senders, 1, first, count, transfers, source), rank=0)
    run = world.run()
    lock.raise_for_status()
    began = next(launch.begin_ns for launch in run.launches if launch.kernel == "lock_send")
    context = lock.sender_qp.context
    counters, port = context.counters, context.port(1).counters
    return {
        "ok": bool(np.array_equal(out[:, :length], source[:, :length])),
        "ns": float(when[0]) - began,
        "wqes": counters["wqes"] / count,
        "doorbells": counters["doorbells"] / count,
        "bytes": port["xmit_bytes"] / count,
    }


def signal(*, seed: int = 1, lengths: tuple[int, ...] = LENGTHS, **_: Any) -> dict[str, Any]:
    """The table: for each strategy and length, one transfer alone and eight under way, on one path and on many."""
    figures: dict[str, float] = {}
    lines = ["Modelled time (no hardware was measured) from the sender's first instruction until the last transfer is signed off."]
    ok = True
    for length in lengths:
        lines += [
            "",
            f"{length} bytes    one path: alone, {_PIPELINE} under way   many paths: alone, {_PIPELINE} under way"
            "   WQEs  doorbells  bytes on the wire",
        ]
        rows: dict[str, list[dict[str, Any]]] = {}
        for name in NAMES:
            row = [_measure(name, length, n, many, seed) for many in (False, True) for n in (1, _PIPELINE)]
            rows[name] = row
            ok = ok and all(cell["ok"] for cell in row)
            right = "" if name != "write" else "   wrong on many paths"
            us = [f"{cell['ns'] / 1e3:8.2f} µs" for cell in row]
            lines.append(
                f"  {name:<10} {us[0]} {us[1]}     {us[2]} {us[3]}     {row[1]['wqes']:4.1f} {row[1]['doorbells']:8.1f}"
                f" {row[1]['bytes']:10.0f}{right}"
            )
            for at, cell in zip(("one", "pipe", "many_one", "many_pipe"), row, strict=True):
                figures[f"{name.replace('-', '_')}_{length}_{at}_ns"] = cell["ns"]
        amo, eager = rows["amo"], rows["eager-crc"]
        waits = amo[2]["ns"] - amo[0]["ns"]
        saved = 1 - eager[2]["ns"] / amo[2]["ns"]
        lines.append(
            f"  an atomic on many paths waits {waits / 1e3:.2f} µs longer: one round trip; a flag in the payload saves "
            f"{saved:.0%} of a lone transfer there"
        )
        figures[f"atomic_many_paths_extra_{length}_ns"] = waits
        figures[f"payload_flag_saves_{length}"] = round(saved, 4)
    return {"ok": ok, "figures": figures, "lines": lines}
