"""A sequence lock that has been connected anew: the slots still hold what the connection before had left unsigned.

The queue pair has failed with a whole window under way: all of it had landed, none of it was signed off. The host
connects again and the sender sends the same tickets, whose payload is another now. What an older epoch left must not
pass for new. Leans on scenarios.lock and signal.reference.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from rdmakit.errors import RdmakitError
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import launch, make_lock, transfer
from rdmakit.signal import SequenceLock, Strategy
from rdmakit.signal import reference as truth


def _left_behind(lock: SequenceLock) -> None:
    """What a NIC would have written for one window of transfers of the lock's present epoch."""
    for ticket in range(lock.signed_off, lock.signed_off + lock.slots):
        payload = bytes([0xE0 | ticket & 0xF]) * lock.max_payload
        raw = truth.slot(lock.strategy, payload, lock.sender_qp.qpn, lock.epoch, ticket, lock.crc)
        lock.ring[ticket % lock.slots, : len(raw)] = np.frombuffer(raw, np.uint8)
        if lock.strategy in (Strategy.AMO, Strategy.SPLIT):
            lock.tail[0] += 1
        elif lock.strategy in (Strategy.WRITE, Strategy.CQE):
            print_ = truth.signal_fingerprint(lock.sender_qp.qpn, lock.epoch, ticket)
            lock.flags[ticket % lock.slots] = truth.stamp(ticket, print_)


@scenario(
    "lock-epochs",
    "connected anew under a later epoch, with stale slots, flags and tails",
    tags=("quick", "lock"),
)
def epochs(scene: Scene) -> None:
    """Options as for `lock`, strategy=write, and forget=False: connect without a new epoch."""
    scene.options = {"strategy": "write", **scene.options}
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    _left_behind(lock)
    lock.reconnect(forget_epoch=bool(scene.options.get("forget", False)))
    transfer(scene, world, lock)


@scenario("lock-forgets-epoch", "connected anew under the same epoch: old slots pass for new ones", holds=False,
          tags=("wrong", "lock"))
def forgets(scene: Scene) -> None:
    """`lock-epochs` with forget=True."""
    scene.options = {"forget": True, "races": False, **scene.options}
    epochs(scene)


@scenario("lock-reconnects", "the sender's queue pair fails in mid-transfer, both ends connect anew and go on",
          tags=("quick", "lock", "deep"))
def reconnects(scene: Scene) -> None:
    """Options as for `lock`, breaks=4: messages after which the queue pair fails; taken=0: transfers that the receiver
    has signed off by then; forget=False: connect without a new epoch.

    The run that breaks is a schedule of its own, that of the scene's seed; then the payload is another.
    """
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    with scene.rehearsal():
        world.faults = f"qp_error=0.0.0@{int(scene.options.get('breaks', 4))}msg"
        launch(scene, world, lock, fill=101, taken=int(scene.options.get("taken", 0)))
        with suppress(RdmakitError):  # of those who wait for the rest
            world.run()
    lock.reconnect(forget_epoch=bool(scene.options.get("forget", False)))
    transfer(scene, world, lock)


def _laps(scene: Scene, world: Any, lock: Any, transfers: int) -> None:
    """So many transfers, before all schedules."""
    mine = scene.options
    scene.options = {**mine, "transfers": transfers}
    with scene.rehearsal():
        launch(scene, world, lock)
        world.run()
    scene.options = mine


@scenario("lock-laps", "the receive queue's index, its doorbell record and the immediate's ticket pass 2**16",
          tags=("lock", "deep"))
def laps(scene: Scene) -> None:
    """Options as for `lock`, strategy=imm; 65,534 transfers have gone before, over the same queue pairs."""
    scene.options = {"strategy": "imm", "length": 8, "slots": 2, **scene.options}
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    _laps(scene, world, lock, (1 << 16) - 2)
    transfer(scene, world, lock)
