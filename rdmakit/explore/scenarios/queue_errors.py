"""A send queue whose work requests fail: everybody who waits learns of it, and nobody takes flushed work for done.

Leans on pair.
"""

from __future__ import annotations

import numpy as np

from rdmakit.device import DeviceStatus
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.pair import Pair
from rdmakit.layout import Syndrome

_START = 3  # index of the first WQE: not what an empty report says


@scenario("queue-error", "the peer refuses every WRITE: all producers stop, with the syndrome", tags=("quick", "queue"))
def queue_error(scene: Scene) -> None:
    """Options as for `queue`, blocks=2. Nothing lands; what is reported is the first error, not that slots are free."""
    scene.options = {"blocks": 2, "words": 6, **scene.options}
    words = int(scene.options["words"])
    pair = Pair(scene, words, sink_access="local_write", watch=False, wqebbs=int(scene.options.get("wqebbs", 4)),
                start=_START)
    pair.put_words(blocks=int(scene.options["blocks"]), warps=int(scene.options.get("warps", 1)))
    report = pair.handle.report
    scene.expect(pair.sink, 0, "sink")

    def told() -> str:
        if report.status is not DeviceStatus.COMPLETION_ERROR:
            return f"the report says {report.status.name}"
        wanted = {int(Syndrome.REMOTE_ACCESS_ERR)}
        if scene.options.get("collapsed"):
            wanted.add(int(Syndrome.WR_FLUSH_ERR))  # one entry: those that are flushed write over the cause
        elif report.index != _START:
            return f"WQE {report.index} is named, and {_START} has failed"
        return "" if report.syndrome in wanted else f"the syndrome is {report.syndrome:#x}, not one of {sorted(wanted)}"

    scene.check(told)


@scenario(
    "queue-quiet",
    "who calls quiet returns when all that was posted before it is complete",
    tags=("quick", "queue"),
)
def queue_quiet(scene: Scene) -> None:
    """Two blocks post and call quiet; when both have ended, every WRITE has been acknowledged and every CQE taken.

    Options as for `queue`, wqebbs=8.
    """
    words = int(scene.options.get("words", 4))
    pair = Pair(scene, words, wqebbs=int(scene.options.get("wqebbs", 8)))
    pair.put_words(blocks=2, batch=int(scene.options.get("take", 2)))
    state = pair.qp._sends.state_memory.view(np.uint64)
    scene.expect(pair.sink, pair.source, "sink")
    scene.expect(state[48:49], words, "completed of the send queue")
