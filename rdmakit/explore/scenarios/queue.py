"""The send queue: small rings that are full all the time, many producers, indices of 16 bits that start again.

Every WRITE must land, none twice in another's place, and the queue must know at the end that all is complete. Leans on
pair and the kernels put_words.cu, post_each.cu.
"""

from __future__ import annotations

import numpy as np

from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.pair import Pair


def _moved(pair: Pair, start: int, bbs: int) -> None:
    """All words have come, and the counters of the queue stand where so many basic blocks leave them."""
    pair.scene.expect(pair.sink, pair.source, "sink")
    state = pair.qp._sends.state_memory.view(np.uint64)
    for name, at in (("reserved", 0), ("ready", 16), ("rung", 32), ("completed", 48)):
        pair.scene.expect(state[at : at + 1], start + bbs, f"{name} of the send queue")


@scenario("queue", "more WRITEs than the ring has room for, by one warp or many", tags=("quick", "queue"))
def queue(scene: Scene) -> None:
    """Options: words=6, blocks=1, warps=1, take=1 (words a reservation), wqebbs=4, batch, dialect, doorbell, collapsed,
    start (index of the first WQE), psn.
    """
    words, start = int(scene.options.get("words", 6)), int(scene.options.get("start", 0))
    pair = Pair(scene, words, wqebbs=int(scene.options.get("wqebbs", 4)), start=start)
    pair.put_words(
        blocks=int(scene.options.get("blocks", 1)),
        warps=int(scene.options.get("warps", 1)),
        batch=int(scene.options.get("take", 1)),
    )
    _moved(pair, start, words)


@scenario("queue-producers", "warps of two blocks share one queue pair with a ring of four", tags=("quick", "queue"))
def producers(scene: Scene) -> None:
    """The same with blocks=2, warps=1 by default: who reserves, publishes, rings and polls is never the same one."""
    scene.options = {"blocks": 2, "words": 6, "take": 1, **scene.options}
    queue(scene)


@scenario(
    "queue-wraps",
    "the 16-bit index of WQEs and the 24-bit PSN start again while the ring is full",
    tags=("quick", "queue"),
)
def wraps(scene: Scene) -> None:
    """The first WQE has index 65,533 and PSN 0xfffffe; one CQE tells of WQEs 65,535 and 65,536."""
    scene.options = {"blocks": 2, "words": 6, "take": 2, "start": (1 << 16) - 3, "psn": (1 << 24) - 2, **scene.options}
    queue(scene)


@scenario("queue-every-wqe", "one WQE of every kind, one of two basic blocks among them", tags=("queue",))
def every_wqe(scene: Scene) -> None:
    """`post_each` of two blocks at once in a ring of 16: 11 basic blocks each."""
    start = int(scene.options.get("start", 0))
    pair = Pair(scene, 16, wqebbs=16, start=start)
    pair.source[:] = 0
    pair.source[0] = 7
    for stream in range(int(scene.options.get("blocks", 2))):
        arguments = (pair.handle.array, pair.sink_memory, pair.source_memory)
        pair.world.stock_kernel("post_each")(1, 32, arguments, stream=stream)
    posted = start + 11 * int(scene.options.get("blocks", 2))
    state = pair.qp._sends.state_memory.view(np.uint64)
    scene.expect(state[:1], posted, "reserved of the send queue")
    scene.expect(state[48:49], posted, "completed of the send queue")
    scene.expect(pair.sink[:1], 7, "sink")
