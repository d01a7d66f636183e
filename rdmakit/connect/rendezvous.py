"""Ranks that exchange small values, each wait bounded, and who did not come named.

Leans on stores and values. Where a program has a store or a communicator already, that is used: `meet` takes what there
is. Every exchange is collective: all ranks make the same ones in the same order.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from rdmakit.connect.stores import FileStore, Store, TcpStore, TorchStore
from rdmakit.connect.values import from_text, to_text
from rdmakit.errors import BadArgument, PeerMismatch, RankMissing

__all__ = ["MpiRendezvous", "Rendezvous", "StoreRendezvous", "meet"]

_SHORTEST_S, _LONGEST_S = 0.001, 0.05  # between two looks
_TAG = 0x7264  # of our messages among a communicator's


class Rendezvous(Protocol):
    """Ranks that can exchange small values."""

    rank: int
    size: int

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective."""

    def barrier(self) -> None:
        """Returns when every rank has called it. Collective."""


def _check_place(rank: int, size: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not isinstance(size, int) or not 0 <= rank < size:
        raise BadArgument("no such rank", value=f"rank {rank} of {size}", rule="0 ≤ rank < number of ranks",
                          remedy="torchrun sets RANK and WORLD_SIZE, mpirun and srun have variables alike")  # fmt: skip


class _Bounded(ABC):
    """Waiting for several ranks, with an end."""

    rank: int
    size: int

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        _check_place(rank, size)
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self.turn = 0

    def _await(self, ask: Callable[[int], Any], what: str) -> list[Any]:
        """`ask(rank)` for every rank until none is None; RankMissing names those that stayed away."""
        found: list[Any] = [None] * self.size
        deadline, pause = time.monotonic() + self.timeout_s, _SHORTEST_S
        while True:
            for rank in range(self.size):
                if found[rank] is None:
                    found[rank] = ask(rank)
            missing = [rank for rank in range(self.size) if found[rank] is None]
            if not missing:
                return found
            if time.monotonic() > deadline:
                raise RankMissing(
                    f"rank {self.rank} waited for {_ranks(missing)}", ranks=tuple(missing),
                    value=f"{self.timeout_s:g} s", rule=f"all {self.size} ranks come: {what}",
                    remedy=f"see whether {_ranks(missing)} started, with the same number of ranks and the same place "
                           "to meet",
                )  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_S)

    def barrier(self) -> None:
        """Returns when every rank has called it. Collective."""
        self.all_gather(None)

    @abstractmethod
    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective."""


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


class StoreRendezvous(_Bounded):
    """Ranks that meet in a store. Values are numbers, text, bytes, None, lists and dicts of them.

    `timeout_s` bounds every exchange: RankMissing names who did not come. PeerMismatch when ranks do not agree on how
    many they are, or when two have one number.
    """

    def __init__(self, store: Store, rank: int, size: int, *, timeout_s: float = 60.0) -> None:
        super().__init__(rank, size, timeout_s)
        self.store = store

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective; values of the turn before are dropped."""
        turn, self.turn = self.turn, self.turn + 1
        told = to_text({"ranks": self.size, "value": value})
        if not self.store.put(f"{turn}/{self.rank}", told):
            raise PeerMismatch(
                f"rank {self.rank} is there already", value=repr(self.store), rule="each rank once, in a fresh store",
                remedy="give each process a rank of its own; a directory of an earlier run has to be emptied",
            )  # fmt: skip
        texts = self._await(lambda rank: self._of(turn, rank), f"exchange {turn}")
        if turn:
            self.store.drop(f"{turn - 1}/{self.rank}")  # who is here has read all of the turn before
        return [text["value"] for text in texts]

    def _of(self, turn: int, rank: int) -> Any:
        text = self.store.get(f"{turn}/{rank}")
        if text is None:
            return None
        found = from_text(text)
        if found["ranks"] != self.size:
            raise PeerMismatch("ranks do not agree on how many they are", value=f"{self.size} at rank {self.rank}",
                               rule=f"{found['ranks']} at rank {rank}",
                               remedy="start all with the same number of ranks")  # fmt: skip
        return found

    def close(self) -> None:
        """Collective: afterwards the store may go. Rank 0 is the last to leave, since it may serve."""
        self.barrier()
        last = self.turn - 1
        if self.rank:
            self.store.put(f"left/{self.rank}", "1")
        else:
            others = self._await(lambda rank: "1" if rank == 0 else self.store.get(f"left/{rank}"), "leaving")
            for rank in range(len(others)):
                self.store.drop(f"{last}/{rank}")
                self.store.drop(f"left/{rank}")
        self.store.close()

    def __repr__(self) -> str:
        return f"<StoreRendezvous rank {self.rank} of {self.size} in {self.store!r}>"


class MpiRendezvous(_Bounded):
    """Ranks of an mpi4py communicator. Values: whatever pickles. A rank that does not come is named in `timeout_s`."""

    def __init__(self, comm: Any, *, timeout_s: float = 60.0) -> None:
        if not callable(getattr(comm, "allgather", None)):
            raise BadArgument("comm is no communicator", value=type(comm).__name__, rule="an mpi4py.MPI.Comm",
                              remedy="pass MPI.COMM_WORLD")  # fmt: skip
        super().__init__(int(comm.Get_rank()), int(comm.Get_size()), timeout_s)
        self.comm = comm

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective."""
        if not callable(getattr(self.comm, "improbe", None)):  # no message can be asked for without waiting
            return list(self.comm.allgather(value))
        self.turn += 1
        sent = [self.comm.isend((value,), dest=rank, tag=_TAG) for rank in range(self.size)]
        found = self._await(self._arrived, f"exchange {self.turn}")
        for request in sent:
            request.wait()
        return [value for (value,) in found]

    def close(self) -> None:
        """Collective; the communicator is the caller's."""
        self.barrier()

    def _arrived(self, rank: int) -> Any:
        message = self.comm.improbe(source=rank, tag=_TAG)
        return None if message is None else message.recv()

    def __repr__(self) -> str:
        return f"<MpiRendezvous rank {self.rank} of {self.size}>"


def meet(
    where: Any, rank: int | None = None, size: int | None = None, *, timeout_s: float = 60.0
) -> StoreRendezvous | MpiRendezvous:
    """A rendezvous from what there is.

    `where`: "file:DIRECTORY" or "tcp:HOST:PORT" (rank 0 serves), with `rank` and `size`; a torch.distributed store,
    with both; or an mpi4py communicator, which knows them.
    """
    if callable(getattr(where, "Get_rank", None)):
        return MpiRendezvous(where, timeout_s=timeout_s)
    if rank is None or size is None:
        raise BadArgument("which rank of how many?", value=f"rank {rank} of {size}",
                          rule="a store does not know who asks", remedy="pass rank and size")  # fmt: skip
    _check_place(rank, size)
    if not isinstance(where, str):
        return StoreRendezvous(TorchStore(where), rank, size, timeout_s=timeout_s)
    kind, _, rest = where.partition(":")
    host, _, port = rest.rpartition(":")
    if kind == "file" and rest:
        return StoreRendezvous(FileStore(rest), rank, size, timeout_s=timeout_s)
    if kind == "tcp" and host and port.isdigit() and int(port) < 1 << 16:
        store = TcpStore(host, int(port), serve=rank == 0, timeout_s=timeout_s)
        return StoreRendezvous(store, rank, size, timeout_s=timeout_s)
    raise BadArgument("no place to meet", value=where, rule="file:DIRECTORY or tcp:HOST:PORT",
                      remedy="for example file:/tmp/meeting, or tcp:10.0.0.1:29600")  # fmt: skip
