"""The in-QP sequence lock: transfers through a small window, by every strategy, in every ordering and for both readers.

Whatever comes, comes once, whole and in order: the receiver copies each payload, and copies must equal the source.
Leans on signal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.pair import move_on
from rdmakit.signal import Ordering, SequenceLock, handles
from rdmakit.signal.abi import LOCK_TRANSFER

__all__ = ["launch", "make_lock", "transfer"]

_PASSED_ON = ("crc", "narrow_tail", "first_ticket", "credit_every")


def make_lock(scene: Scene, world: Any, **more: Any) -> SequenceLock:
    """One lock from host 0 to host 1, as the scene's options say."""
    options = scene.options
    name = str(options.get("ordering", "strict"))
    if name.upper() not in Ordering.__members__:
        remedy = "set ordering to one of these"
        raise BadArgument("no such ordering", value=name, rule="strict, relaxed or out_of_order", remedy=remedy)
    ordering = Ordering[name.upper()]
    if not options.get("races", True):  # damage alone counts
        scene.allow_latent_races()
    given = {name: options[name] for name in _PASSED_ON if name in options}
    lock = SequenceLock(
        world.open(0).alloc_pd(),
        world.open(1).alloc_pd(),
        strategy=options.get("strategy", "amo"),
        slots=int(options.get("slots", 2)),
        max_payload=int(options.get("length", 16)),
        relaxed_ordering=ordering is Ordering.RELAXED,
        out_of_order=ordering is Ordering.OUT_OF_ORDER,
        **{**given, **more},
    )
    if "index" in options:
        for qp in (lock.sender_qp, lock.receiver_qp):
            move_on(qp, int(options["index"]))
    return lock


def launch(
    scene: Scene, world: Any, lock: SequenceLock, *, fill: int = 1, taken: int | None = None
) -> tuple[Any, Any, Any]:
    """Launches both ends for the next `transfers` tickets. Returns what is sent, where it is copied to, and the
    lengths.

    `fill`: of the first byte that is sent; the others count on from there. `taken`: transfers that the receiver waits
    for, by default all.
    """
    transfers, length = int(scene.options.get("transfers", 3)), lock.max_payload
    stride = -(-length // 8) * 8  # of rows
    source = world.array((transfers, stride), np.uint8, name="source")
    source[:, :length] = np.arange(fill, fill + transfers * length).reshape(transfers, length) % 251
    copies = world.array((transfers, stride), np.uint8, name="copies")
    lengths = world.array((transfers,), np.uint32, 0xDEAD, name="lengths")
    orders = world.array((transfers,), LOCK_TRANSFER)
    orders["offset"], orders["length"] = np.arange(transfers) * stride, length
    first = world.array((1,), np.uint64)
    first[0] = lock.signed_off
    senders, receivers = handles([lock], world.array)
    count = transfers if taken is None else taken
    world.stock_kernel("lock_receive")(1, 32, (receivers, 1, first, count, copies, stride, lengths, None), rank=1)
    world.stock_kernel("lock_send")(1, 32, (senders, 1, first, transfers, orders, source), rank=0)
    scene.keep(lock, senders, receivers, orders, first)
    return source, copies, lengths


def transfer(scene: Scene, world: Any, lock: SequenceLock) -> None:
    """`launch`; what arrives must be what was sent."""
    source, copies, lengths = launch(scene, world, lock)
    for report in lock.reports:
        scene.watch(report)
    scene.expect(copies, source, "copies")
    scene.expect(lengths, lock.max_payload, "lengths")


@scenario("lock", "transfers through the sequence lock, each once, whole and in order", tags=("quick", "lock"))
def lock(scene: Scene) -> None:
    """Options: strategy=amo, ordering=strict, transfers=3, slots=2, length=16, races=True, and those of SequenceLock
    crc, narrow_tail, first_ticket, credit_every; index of the first WQE of both send queues.
    """
    world = scene.world(hosts=2, ports=1)
    transfer(scene, world, make_lock(scene, world))
