"""What no protocol can finish: a rank that dies, a queue pair that fails, a doorbell that is lost, all in mid-transfer.

Then waiting for ever is right and an error report is right; what was signed off has to be what was sent, and what was
not signed off must not pass for delivered. `tally` of the scene counts the schedules that ended early and those that
did not. Leans on scenarios.lock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import DeviceStatus
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import launch, make_lock

_TAGS = ("fault", "deep", "lock")
_RIGHT_REPORTS = (DeviceStatus.OK, DeviceStatus.COMPLETION_ERROR)


def _breaks(scene: Scene) -> None:
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    source, copies, lengths = launch(scene, world, lock)
    scene.may_end_early()
    state: Any = lock._receiver.state

    def delivered() -> str:
        done = int(state["signed_off"])
        scene.tally["all arrived" if done == len(source) else "ended early"] += 1
        if not np.array_equal(copies[:done], source[:done]):
            return f"one of the first {done} rows, which were signed off, is not what was sent"
        if not (lengths[:done] == lock.max_payload).all():
            return f"one of the first {done} lengths is wrong: {lengths.tolist()}"
        for report in lock.reports:
            if report.status not in _RIGHT_REPORTS:
                return f"rank {report.rank} says {report.status.name}"
        return ""

    scene.check(delivered)


for _name, _title, _faults in (
    ("lock-sender-dies", "the sender's rank dies in mid-transfer: its peer has whole transfers or none", "dead=0@3msg"),
    ("lock-receiver-dies", "the receiver's rank dies in mid-transfer: what it had signed off is right", "dead=1@3msg"),
    ("lock-queue-pair-fails", "the sender's queue pair goes to ERR by itself in mid-transfer", "qp_error=0.0.0@3msg"),
    ("lock-doorbell-lost", "a doorbell has no effect: late or never, but nothing wrong", "doorbell_lost=0.3,budget=2"),
):
    scenario(_name, _title, faults=_faults, tags=(*_TAGS, "quick"))(_breaks)
