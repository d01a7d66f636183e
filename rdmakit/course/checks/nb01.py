"""Notebook 01: the learner's order of steps, taken on two queue pairs of an emulated device."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong, short
from rdmakit.device import QP
from rdmakit.emu import World
from rdmakit.errors import CompletionError, RdmakitError

_WRITE = "here: WRITE"
_STEPS = {f"{side} to {state}" for side in ("here", "there") for state in ("INIT", "RTR", "RTS")} | {_WRITE}
# Behind the WRITE, in the best order: `there` need not be able to send in order to receive.
_MAY_FOLLOW = 1


def _climb(qp: QP, peer: QP, state: str) -> None:
    if state == "INIT":
        qp.modify("INIT", port_num=1, pkey_index=0, qp_access_flags="remote_write")
    elif state == "RTR":
        to = peer.endpoint()
        own = {"rq_psn": to.psn, "path_mtu": to.mtu, "min_rnr_timer": 12, "max_dest_rd_atomic": 1}
        qp.modify("RTR", dgid=to.gid, dest_qp_num=to.qpn, **own)
    else:
        qp.modify("RTS", sq_psn=qp.psn, timeout=14, retry_cnt=7, rnr_retry=7, max_rd_atomic=1)


def _take(steps: list[str]) -> None:
    """Take the steps in this order. Wrong names the first one that fails, and what the device said."""
    world = World(hosts=2)
    here, there = (nic.alloc_pd().create_qp(nic.create_cq(16)) for nic in (world.open(0), world.open(1)))
    source = here.pd.register(np.full(64, 7, np.uint8))
    target = there.pd.register(np.zeros(64, np.uint8))
    sides = {"here": (here, there), "there": (there, here)}
    for number, step in enumerate(steps, 1):
        try:
            if step == _WRITE:
                here.post_write(source, target)
                here.send_cq.wait()
            else:
                side, _, state = step.partition(" to ")
                _climb(*sides[side], state)
        except CompletionError as error:
            raise Wrong(f"step {number}, {step!r}, was sent, but failed with {error.wc_status}") from None
        except RdmakitError as error:
            raise Wrong(f"step {number}, {step!r}, is refused: {str(error).splitlines()[0]}") from None
    if not (target.bytes == 7).all():
        raise Wrong("all steps were granted, but the data did not arrive")


@exercise(
    "01.order",
    hints=(
        "Take one side alone first: in which order does the picture allow its three steps?",
        "What must the peer be able to do when the WRITE's packet arrives? The names of the states say it.",
        "`here` sends and `there` receives. Which of the seven steps is of no use to this WRITE at all?",
    ),
)
def order(trial: Trial, steps: Any) -> None:
    """Every step once, none refused, the data there, and the WRITE as early as it can be."""
    trial.is_a(steps, (list, tuple), "order")
    for step in steps:
        trial.require(isinstance(step, str) and step in _STEPS, f"{short(step)} is none of the seven steps")
    missing = sorted(_STEPS - set(steps))
    trial.require(not missing, f"{', '.join(map(repr, missing))} is missing")
    trial.has_length(steps, len(_STEPS), "order")
    _take(list(steps))
    behind = len(steps) - 1 - list(steps).index(_WRITE)
    trial.require(
        behind >= _MAY_FOLLOW,
        "no step is refused and the data arrives. But the WRITE could have gone out earlier: "
        "something that comes before it is not needed for it",
    )
