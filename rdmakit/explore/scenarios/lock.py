"""The in-QP sequence lock: transfers through a small window, by every strategy, in every ordering and for both readers.

Whatever comes, comes once, whole and in order: the receiver copies each payload, and copies must equal the source. Leans
on signal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.signal import Ordering, Reader, SequenceLock, handles, is_right
from rdmakit.signal.abi import LOCK_TRANSFER

__all__ = ["make_lock", "ordering_of", "right", "transfer"]


def ordering_of(scene: Scene) -> Ordering:
    """The option `ordering`: strict, relaxed (of the receiver's MRs) or out_of_order (of the QPs)."""
    name = str(scene.options.get("ordering", "strict")).upper()
    if name not in Ordering.__members__:
        raise BadArgument("no such ordering", value=name.lower(), rule="strict, relaxed or out_of_order")
    return Ordering[name]


def right(scene: Scene) -> bool:
    """Whether the strategy declares the mode of the scene's options right."""
    from rdmakit.signal import Strategy

    strategy = Strategy.of(scene.options.get("strategy", "amo"))
    return is_right(strategy, ordering_of(scene), Reader[scene.reader.upper()], bool(scene.options.get("crc", False)))


def make_lock(world: Any, scene: Scene, **more: Any) -> SequenceLock:
    """One lock from host 0 to host 1 with the scene's options `strategy`, `ordering`, `slots`, `crc`, `first_ticket`."""
    ordering = ordering_of(scene)
    given = {name: scene.options[name] for name in ("crc", "narrow_tail", "first_ticket") if name in scene.options}
    return SequenceLock(
        world.open(0).alloc_pd(),
        world.open(1).alloc_pd(),
        strategy=scene.options.get("strategy", "amo"),
        slots=int(scene.options.get("slots", 2)),
        max_payload=int(scene.options.get("length", 16)),
        relaxed_ordering=ordering is Ordering.RELAXED,
        out_of_order=ordering is Ordering.OUT_OF_ORDER,
        **given,
        **more,
    )


def transfer(scene: Scene, world: Any, lock: SequenceLock, transfers: int) -> tuple[Any, Any]:
    """Launches both ends for the next `transfers` tickets; what arrives must be what was sent. (source, copies)."""
    length = lock.max_payload
    source = world.array((transfers, length), np.uint8, name="source")
    source[...] = np.arange(1, 1 + source.size, dtype=np.uint32).reshape(source.shape) % 251
    copies = world.array((transfers, length), np.uint8, 0xA5, name="copies")
    lengths = world.array((transfers,), np.uint32, 0xDEAD, name="lengths")
    orders = world.array((transfers,), LOCK_TRANSFER)
    orders["offset"], orders["length"] = np.arange(transfers) * length, length
    first = world.array((1,), np.uint64)
    first[0] = lock.signed_off
    senders, receivers = handles([lock], world.array)
    world.stock_kernel("lock_receive")(1, 32, (receivers, 1, first, transfers, copies, length, lengths, None), rank=1)
    world.stock_kernel("lock_send")(1, 32, (senders, 1, first, transfers, orders, source), rank=0)
    for report in lock.reports:
        scene.watch(report)
    scene.keep(lock, senders, receivers, orders, first)
    scene.expect(copies, source)
    scene.expect(lengths, length)
    return source, copies


@scenario("lock", "transfers through the sequence lock, each once, whole and in order", tags=("quick", "lock"))
def lock(scene: Scene) -> None:
    """Options: strategy, ordering, transfers=3, slots=2, length=16, crc, narrow_tail, first_ticket."""
    world = scene.world(hosts=2, ports=1)
    transfer(scene, world, make_lock(world, scene), int(scene.options.get("transfers", 3)))
