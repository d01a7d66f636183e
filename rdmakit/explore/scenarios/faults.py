"""The same protocols while the network loses, spoils and doubles what they send.

A NIC sends again until the other side has everything; nothing of that may show: every byte comes once, in order. A
plan's `budget` keeps faults below what the NIC's retries allow. Leans on the other scenarios.
"""

from __future__ import annotations

from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import lock as plain_lock
from rdmakit.explore.scenarios.moe import low_latency, normal
from rdmakit.explore.scenarios.put_signal import put_signal
from rdmakit.explore.scenarios.queue import producers
from rdmakit.explore.scenarios.ring import ring as plain_ring

FAULTS = "loss=0.1,corrupt=0.1,duplicate=0.2,ack_lost=0.1,rnr=0.1,budget=6"
_TAGS = ("fault", "deep")

for _name, _title, _build, _more in (
    ("put-signal", "put and signal over a bad network", put_signal, ("quick",)),
    ("queue", "many producers over a bad network", producers, ("quick", "queue")),
    ("ring", "a ring with credits over a bad network", plain_ring, ("queue",)),
    ("lock", "the sequence lock over a bad network", plain_lock, ("quick", "lock")),
    ("ep-normal", "normal dispatch and combine over a bad network", normal, ("ep",)),
    ("ep-low-latency", "low-latency dispatch and combine over a bad network", low_latency, ("ep",)),
):
    scenario(f"{_name}-faults", _title, faults=FAULTS, tags=(*_TAGS, *_more))(_build)


@scenario(
    "lock-imm-faults",
    "immediates over a bad network: receivers that are not ready, too",
    faults=FAULTS, tags=(*_TAGS, "lock"),
)
def imm(scene: Scene) -> None:
    """`lock` with strategy=imm."""
    scene.options = {"strategy": "imm", **scene.options}
    plain_lock(scene)
