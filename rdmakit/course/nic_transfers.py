"""Transfers by the sequence lock over this machine's own ports, timed, for the cells "on real hardware".

Leans on signal, emu and `nic_ports`. Kernels run on the CPU runner and every port sends to itself: times are of this
machine, and say what one way of signalling costs beside another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rdmakit.course.nic_ports import hashed_to, sent_by, two_ways
from rdmakit.course.real_pair import active_devices
from rdmakit.emu.outside import OutsideWorld
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.signal import SequenceLock, handles
from rdmakit.signal.abi import LOCK_TRANSFER

__all__ = ["RealTransfers", "real_transfers"]

_SLOTS = 16


class RealTransfers(NamedTuple):
    """Of all locks together: microseconds a transfer, of the quickest round; bytes `sent` by the ports `names` in all
    rounds, 0 where no port counts them; and how many transfers did not arrive as sent."""

    names: list[str]
    us: float
    sent: list[int]
    wrong: int


def real_transfers(
    strategy: str, on: Sequence[int], *, transfers: int = 50, nbytes: int = 4096, rounds: int = 8, queues: str = "",
    seed: int | None = None,
) -> RealTransfers:  # fmt: skip
    """`transfers` of `nbytes` fresh random bytes by each lock; lock i has queue pairs of its own that leave by port
    `on[i]`, 1 or 2, of this machine. `strategy` as in `SequenceLock`: how the signal follows its data.
    `queues="proxied"`: a proxy posts for the kernels.

    NotAvailable where there are not that many ports, or the device cannot signal so. BadArgument for other ports.
    """
    if not on or not set(on) <= {1, 2} or transfers < 1 or rounds < 1:
        raise BadArgument("no such locks", value=(list(on), transfers, rounds),
                          rule="ports 1 and 2, one transfer and one round at least",
                          remedy="on=[1, 2]")  # fmt: skip
    contexts = active_devices("rdma", queues)
    paths = two_ways(contexts)
    if max(on) > len(paths):
        raise NotAvailable("one port only", value=", ".join(map(str, paths)), rule="two ports that are up",
                           remedy="rdmakit connectx -- jupyter lab has two")  # fmt: skip
    world = OutsideWorld(2)
    for context in contexts:
        world.let_work(context)
    locks = []
    for channel, way in enumerate(paths[port - 1] for port in on):
        lock = SequenceLock(way.pd, way.pd, strategy=strategy, slots=_SLOTS, max_payload=nbytes, port=way.ib_port,
                            channel=channel)  # fmt: skip
        if way.lag_port:
            try:
                lock.sender_qp.lag_port = lock.receiver_qp.lag_port = way.lag_port
            except NotAvailable:  # a bond that hashes
                lock.sender_qp.udp_sport = lock.receiver_qp.udp_sport = hashed_to(paths)[way.lag_port]
        locks.append(lock)
    stride = -(-nbytes // 8) * 8
    source, out = (world.array((len(locks), transfers, stride), np.uint8) for _ in range(2))
    rows = world.array((len(locks), transfers), LOCK_TRANSFER)
    rows["offset"] = np.arange(rows.size).reshape(rows.shape) * stride
    rows["length"] = nbytes
    first, got = world.array(len(locks), np.uint64), world.array(rows.shape, np.uint32)
    senders, receivers = handles(locks, world.array)
    warps = 32 * len(locks)
    before = sent_by(paths)
    rng, took, wrong = np.random.default_rng(seed), float("inf"), 0
    for _ in range(rounds):
        source[...] = rng.integers(0, 256, source.shape, np.uint8)
        out[...] = ~source  # no byte is right before it arrives
        first[:] = [lock.signed_off for lock in locks]
        receive = receivers, len(locks), first, transfers, out, stride, got, None
        world.stock_kernel("lock_receive")(1, warps, receive, rank=1)
        world.stock_kernel("lock_send")(1, warps, (senders, len(locks), first, transfers, rows, source), rank=0)
        began = time.perf_counter()
        world.run()
        took = min(took, time.perf_counter() - began)
        for lock in locks:
            lock.raise_for_status()
        wrong += int((out[..., :nbytes] != source[..., :nbytes]).any(axis=-1).sum())
    sent = [now - old for now, old in zip(sent_by(paths), before, strict=True)]
    for context in contexts:
        with context:  # gives everything back in order
            pass
    return RealTransfers([str(path) for path in paths], 1e6 * took / rows.size, sent, wrong)
