"""Notebook 02: two work requests that are refused for their rights alone, one by each NIC."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import MR, Completion, connected_pair
from rdmakit.emu import World
from rdmakit.errors import HangError
from rdmakit.layout import WcStatus

_NBYTES = 4096


def _stays_inside(completion: Completion, mine: MR, theirs: MR, what: str) -> None:
    """Wrong when the work request names other keys than the two, or bytes outside the two regions."""
    wqe = completion.wqe
    remote = wqe.segment("raddr") if wqe is not None else None
    if wqe is None or remote is None:
        raise Wrong(f"{what} posted {completion.opcode}, which goes to no address at the peer")
    parts = [segment for segment in wqe.segments if segment.name == "data"]
    total = sum(part.number("byte_count") for part in parts)
    touched = [(mine, part.number("lkey"), part.number("addr"), part.number("byte_count")) for part in parts]
    touched.append((theirs, remote.number("rkey"), remote.number("raddr"), total))
    for region, key, address, nbytes in touched:
        if key != region.lkey:
            raise Wrong(f"{what} used {key:#x}, not the key of `{region.name}`: only the rights may be wrong")
        if not region.address <= address <= address + nbytes <= region.address + region.nbytes:
            raise Wrong(f"{what} left the bounds of `{region.name}`: only the rights may be wrong")


def _one(trial: Trial, function: Any, wanted: WcStatus, other: str) -> None:
    world = World(hosts=2)
    qp, peer = connected_pair(world.open(0), world.open(1))
    mine = qp.pd.register(np.zeros(_NBYTES, np.uint8), "", name="mine")
    theirs = peer.pd.register(np.zeros(_NBYTES, np.uint8), "remote_read", name="theirs")
    name = trial.call(function, qp, mine, theirs)
    what = getattr(function, "__name__", "your function")
    trial.require(qp.posted, f"{what} posted nothing on `qp`")
    try:
        completion = qp.send_cq.wait(check=False)[0]
    except HangError:
        raise Wrong(f"the work request of {what} never completes: is it signalled, does it need a receive?") from None
    _stays_inside(completion, mine, theirs, what)
    trial.require(completion.wqe_index == 0 and qp.posted == 1, f"{what} posted more than one work request")
    trial.require(not completion.ok, f"the {completion.opcode} of {what} succeeded: everybody had the right")
    trial.require(completion.status is wanted, f"the {completion.opcode} of {what} was refused by {other}")
    trial.is_a(name, str, f"what {what} returns")
    trial.require(name == wanted.name, f"{what} caused the right error, but {name!r} is not its name")


@exercise(
    "02.protection",
    hints=(
        "In which direction do the bytes of a WRITE travel, and in which those of a READ?",
        "Whoever takes bytes in must let them be written. Which regions allow no writing, and to whom?",
        "One verb writes into `mine`, the other into `theirs`. The errors' names stand in the table above.",
    ),
)
def protection(trial: Trial, local: Any, remote: Any) -> None:
    """`local` is refused by the NIC here, `remote` by that there, for rights alone; both names are right."""
    _one(trial, local, WcStatus.LOC_PROT_ERR, "the peer's NIC, not by your own")
    _one(trial, remote, WcStatus.REM_ACCESS_ERR, "your own NIC, not by the peer's")
