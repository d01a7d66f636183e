"""Ranks of one host, each in a process of its own: their heaps, mapped here, and word of who died, failed or left.

Leans on connect, emu.shared_memory, errors. What a rank has to say of itself lies in the page behind its heap, so that
whoever waits for it need not wait in vain. Source: man proc, /proc/[pid]/stat.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rdmakit.connect import Rendezvous
from rdmakit.emu.shared_memory import SharedMemory, map_shared
from rdmakit.errors import HangError, NotAvailable, RankDied, RankMissing, RdmakitError

__all__ = ["Neighbours", "all_of"]

_PAGE = 4096
_HERE, _LEFT, _FAILED = 0, 1, 2  # the word that begins the page behind a heap; a failure's text follows
_TEXT = slice(8, 2048)
_GRACE_S = 0.5  # what the dead had sent may still be under way
_STATE, _BEGAN = 0, 19  # of what follows the name in /proc/[pid]/stat: fields 3 and 22

_Found = TypeVar("_Found")
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def _stat(pid: int) -> tuple[str, str]:
    """State and time of birth of a process, ("", "") when there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return words[_STATE], words[_BEGAN]


def _leave(word: np.ndarray[Any, Any], pid: int) -> None:
    if os.getpid() == pid and word[0] == _HERE:  # not in a process that was forked from ours
        word[0] = _LEFT


class Neighbours:
    """Ranks `first` … `first + count - 1` of the group, this one among them. Collective over the whole group.

    `heaps`: by rank, uint8 [nbytes] of each as it lies here; None for ranks of other hosts. BadArgument for a size that
    cannot be had, NotAvailable where a rank's memory cannot be reached; when one rank fails, all do, and name it.
    """

    def __init__(self, rendezvous: Rendezvous, first: int, count: int, nbytes: int) -> None:
        self.rank, self.ranks = rendezvous.rank, range(first, first + count)
        self._rendezvous = rendezvous
        self._pids: dict[int, tuple[int, str]] = {}  # of the others: and when they were born
        self._missed: float | None = None  # since when somebody has been known to be dead
        room = -(-nbytes // _PAGE) * _PAGE
        whole = self.share(room + _PAGE, "heap")
        self.heaps: list[_Bytes | None] = [None if each is None else each[:nbytes] for each in whole]
        self._pages: dict[int, _Bytes] = {rank: each[room:] for rank, each in enumerate(whole) if each is not None}
        born = rendezvous.all_gather([os.getpid(), _stat(os.getpid())[1]])
        for rank in self.ranks:
            pid, began = born[rank]
            if pid != os.getpid():
                self._pids[rank] = int(pid), str(began)
        self._leave = weakref.finalize(self, _leave, _word(self._pages[self.rank]), os.getpid())

    def share(self, nbytes: int, what: str = "low-latency heap") -> list[_Bytes | None]:
        """More zeroed memory that all of them reach, by rank as `heaps`. Collective over the whole group."""
        own = all_of(self._rendezvous, lambda: SharedMemory(nbytes, f"{what} of rank {self.rank}"))
        told = self._rendezvous.all_gather(own.told)

        def mapped() -> list[_Bytes | None]:
            found: list[_Bytes | None] = [None] * self._rendezvous.size
            for rank in self.ranks:
                found[rank] = own.array if rank == self.rank else map_shared(told[rank], f"{what} of rank {rank}")
            return found

        return all_of(self._rendezvous, mapped)  # returns when all have it: `own` may go

    def leave(self) -> None:
        """Say that this rank goes in order: nobody will have to ask where it is."""
        self._leave()

    def tell(self, error: Exception) -> None:
        """Say that this rank has failed, and why: it will not come any more. What others know as well is not told."""
        page = self._pages[self.rank]
        if _word(page)[0] == _HERE and not isinstance(error, RankDied | RankMissing):
            text = f"{type(error).__name__}: {error}".partition("\n")[0].encode()[: _TEXT.stop - _TEXT.start]
            page[_TEXT][: len(text)] = np.frombuffer(text, np.uint8)
            _word(page)[0] = _FAILED

    # ---- who is missed
    def lost(self) -> HangError | None:
        """That a rank has failed or died without a word, for `OutsideWorld.look_for`; None while all is well."""
        dead = [rank for rank in self._ended() if _word(self._pages[rank])[0] == _HERE]
        if not dead:
            return self._failed()
        now = time.monotonic()
        self._missed = now if self._missed is None else self._missed
        if now < self._missed + _GRACE_S:
            return None
        return RankDied(
            f"rank {self.rank} misses {_names(dead)}", ranks=tuple(dead),
            value=f"{_processes(self._pids[rank][0] for rank in dead)} of this host ended without a word",
            rule="all ranks of a host live until the last of them has destroyed its Buffer",
            remedy="look what that process printed last, and for the kernel's OOM killer; then start all of them anew",
        )  # fmt: skip

    def _failed(self) -> RankMissing | None:
        failed = self._others(_FAILED)
        if not failed:
            return None
        why = bytes(self._pages[failed[0]][_TEXT]).rstrip(b"\0").decode(errors="replace")
        return RankMissing(
            f"rank {self.rank} waits for {_names(failed)}, which failed", ranks=tuple(failed), value=why,
            rule="an error of one rank ends the call on all ranks of its host",
            remedy="mend what that rank says; then start all of them anew",
        )  # fmt: skip

    def gone(self, hang: HangError) -> HangError | None:
        """Whose leaving explains a hang, if anybody's does."""
        left = self._others(_LEFT)
        if not left:
            return None
        return RankMissing(
            f"rank {self.rank} waits for {_names(left)}, which left", ranks=tuple(left),
            value="its Buffer is destroyed, or its program at its end",
            rule="every rank makes the same calls, and destroys its Buffer after the last one",
            remedy="look what that rank did otherwise: an exception of its own, a call fewer", report=hang.report,
        )  # fmt: skip

    def _others(self, state: int) -> list[int]:
        return [rank for rank in self.ranks if rank != self.rank and _word(self._pages[rank])[0] == state]

    def _ended(self) -> list[int]:
        found = []
        for rank, (pid, began) in self._pids.items():
            state, born = _stat(pid)
            if born != began or state in "ZX":
                found.append(rank)
        return found

    def __repr__(self) -> str:
        others = len(self.ranks) - 1
        return f"<Neighbours of rank {self.rank}: {others} ranks of its host, {len(self._pids)} in other processes>"


def _word(page: _Bytes) -> np.ndarray[Any, Any]:
    return page[:8].view(np.uint64)


def _names(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _processes(pids: Any) -> str:
    numbers = list(pids)
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def all_of(rendezvous: Rendezvous, do: Callable[[], _Found]) -> _Found:
    """What `do` gives, or the first error of any rank: its own where it has one. Collective over the whole group."""
    found: _Found | None = None
    error: RdmakitError | None = None
    try:
        found = do()
    except RdmakitError as own:
        error = own
    told = rendezvous.all_gather(None if error is None else str(error))
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise NotAvailable(f"rank {rank} cannot share memory with its host's ranks", value=text,
                               rule="all ranks of a host share their heaps",
                               remedy="mend it there, then start all of them anew")  # fmt: skip
    assert found is not None
    return found
