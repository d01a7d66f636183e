"""One rank in a process of its own, its kernels on the CPU runner; ranks of its host are other processes.

Leans on emu.outside, ep.link, ep.neighbours, ep.nvlink. `connect` gives the engine of a group that is on one host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from rdmakit.connect import Rendezvous
from rdmakit.emu.outside import OutsideWorld
from rdmakit.ep.link import WorldLink
from rdmakit.ep.neighbours import Neighbours
from rdmakit.ep.nvl_memory import Control
from rdmakit.ep.nvlink import MAX_EXPERTS, Nvlink
from rdmakit.errors import BadArgument, HangError, NotAvailable, RankMissing, RdmakitError

__all__ = ["PATIENCE", "ProcessLink", "connect", "patience_s"]

PATIENCE = "RDMAKIT_PATIENCE"
"""The environment variable that bounds every wait, in seconds; 60 without it."""

BLOCKS = 24  # of a kernel, at most


def patience_s() -> float:
    """What the environment says, in seconds. BadArgument for what is no time."""
    text = os.environ.get(PATIENCE, "60")
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise BadArgument(f"{PATIENCE} is no time", value=text, rule="seconds, more than 0", remedy="unset it for 60")
    return found


class ProcessLink(WorldLink):
    """This rank's end. Kernels have run when `launch` returns: other processes run theirs meanwhile. Without `at_once`
    they run when somebody waits, or runs `world`.

    Ranks `first` … `first + count - 1` share the host, and the heaps, of `nbytes` each; the constructor and `symmetric`
    are collective over the whole group. `patience_s` bounds every wait. Whoever waits for a process that died
    (RankDied) or failed (RankMissing, with what it said) learns it within a second; for one that left, or is late, or
    is another host's, when patience ends (RankMissing).
    """

    world: OutsideWorld

    def __init__(
        self, rendezvous: Rendezvous, first: int, count: int, nbytes: int, *, patience_s: float, seed: int = 0,
        at_once: bool = True,
    ) -> None:  # fmt: skip
        self.neighbours, self.at_once = Neighbours(rendezvous, first, count, nbytes), at_once
        world = OutsideWorld(rendezvous.size, patience_s=patience_s, seed=seed)
        world.look_for(self.neighbours.lost, partial(_why, self.neighbours, patience_s))
        super().__init__(world, rendezvous.rank, self.neighbours.heaps, blocks=BLOCKS)

    def launch(self, *arguments: Any, **options: Any) -> None:
        """Launch and run."""
        super().launch(*arguments, **{**options, "stream": 0})
        if self.at_once:
            self.settle()

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Run the world. What goes wrong, the other ranks of the host are told, who would wait for this one."""
        try:
            super().wait(done, what)
        except RdmakitError as error:
            self.neighbours.tell(error)
            raise

    def symmetric(self, nbytes: int, gather: Callable[[Any], list[Any]]) -> tuple[list[int], Any]:
        """Zeroed memory shared with the ranks of this host."""
        shared = self.neighbours.share(nbytes)
        return [0 if each is None else int(each.ctypes.data) for each in shared], shared

    def close(self) -> None:
        """Leave in order; others may still have our heap mapped."""
        self.neighbours.leave()


def _why(neighbours: Neighbours, patience_s: float, hang: HangError) -> HangError | None:
    """Who was waited for in vain. Waits of kernels name their peer, or this rank itself where it is none."""
    if (left := neighbours.gone(hang)) is not None:
        return left
    waits = [] if hang.report is None else hang.report.waits
    late = sorted({wait.peer for wait in waits if wait.state == "waits" and wait.peer != neighbours.rank})
    if not late:
        return None
    return RankMissing(
        f"rank {neighbours.rank} waited for rank{'s' * (len(late) > 1)} {', '.join(map(str, late))}",
        ranks=tuple(late), value=f"{patience_s:g} s without news", rule="all ranks make the same calls, and live",
        remedy=f"look whether they run, and in which call; {PATIENCE} is how long to wait", report=hang.report,
    )  # fmt: skip


def connect(rendezvous: Rendezvous, *, num_nvl_bytes: int, num_rdma_bytes: int, enable_shrink: bool) -> Nvlink:
    """The engine of this rank among those of one host, as `rdmakit.ep.nvlink.connect`, without a GPU. Collective.

    NotAvailable for `enable_shrink`: a rank that dies ends the call on all others.
    """
    if enable_shrink:
        raise NotAvailable("enable_shrink is not supported where kernels run on the CPU", value=enable_shrink,
                           rule="processes have no time in which a rank that is late is told from one that is gone",
                           remedy="leave enable_shrink out, or run on GPUs")  # fmt: skip
    nbytes = Control(rendezvous.size, MAX_EXPERTS).nbytes + num_rdma_bytes + num_nvl_bytes
    link = ProcessLink(rendezvous, 0, rendezvous.size, nbytes, patience_s=patience_s())
    engine = Nvlink(link, low_latency_bytes=num_rdma_bytes)
    rendezvous.barrier()
    if rendezvous.rank == 0:
        print(f"rdmakit: kernels on the CPU; {rendezvous.size} ranks of one host share memory", file=sys.stderr,
              flush=True)  # fmt: skip
    return engine
