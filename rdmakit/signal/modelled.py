"""What each strategy of the sequence lock costs in virtual time: real kernels and WQEs, one path or many.

Leans on emu and signal.lock. The kernels, WQEs, doorbells and bytes are real; the clock is the emulator's, whose costs
are published or assumed (`rdmakit/emu/hca/timing.hpp`). Every transfer is compared with what was sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdmakit.emu.compile import compile_source
from rdmakit.signal.abi import LOCK_TRANSFER
from rdmakit.signal.lock import SequenceLock, handles

__all__ = ["NAMES", "Modelled", "modelled"]

NAMES = ("amo", "imm", "eager", "eager-crc", "write", "cqe")  # those that are right somewhere
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


@dataclass(frozen=True)
class Modelled:
    """Of one run. `ns`: virtual time from the sender's first instruction until the last transfer is signed off.

    `wqes`, `doorbells` and `wire_bytes`, what the sender's port has sent, are per transfer.
    """

    ok: bool
    ns: float
    wqes: float
    doorbells: float
    wire_bytes: float


def modelled(name: str, length: int, *, count: int = 1, many_paths: bool = False, seed: int = 1) -> Modelled:
    """`count` transfers of `length` bytes by one of `NAMES`, up to 16 under way. No hardware is measured.

    `many_paths`: queue pairs that may deliver out of order.

    >>> alone = modelled("imm", 8)
    >>> alone.ok, alone.wqes, alone.doorbells
    (True, 1.0, 1.0)
    """
    from rdmakit.emu.world import World

    strategy, _, crc = name.partition("-")
    world = World(hosts=2, ports=1, policy="timed", seed=seed, data_in_order=True)
    lock = SequenceLock(
        world.open(0).alloc_pd(),
        world.open(1).alloc_pd(),
        strategy=strategy,
        crc=bool(crc),
        slots=16,
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
    return Modelled(
        ok=bool(np.array_equal(out[:, :length], source[:, :length])),
        ns=float(when[0]) - began,
        wqes=counters["wqes"] / count,
        doorbells=counters["doorbells"] / count,
        wire_bytes=port["xmit_bytes"] / count,
    )
