"""Ranks that meet: small objects from every rank to every other, through a store of torch.distributed or by mpi4py.

Leans on launch and ep.tensors (the one module that imports torch). A store rather than a process group, since a backend
would choose a network interface of its own, which is one of the things that may be amiss here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

from rdmakit.cli.doctor.launch import Launched
from rdmakit.errors import BadArgument, HangError, NotAvailable

__all__ = ["Meeting", "MpiMeeting", "StoreMeeting", "meeting", "torch_store"]

_PATIENCE_S = 120.0  # for the slowest rank; the import of torch on a cold file system takes most of it


class Meeting(Protocol):
    """All calls are collective."""

    rank: int
    size: int

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""

    def exchange(self, values: list[Any]) -> list[Any]:
        """`values[peer]` goes to that peer alone; what each peer had for this rank, by rank."""

    def barrier(self) -> None:
        """Returns when every rank has called it."""


class StoreMeeting:
    """Over a store with `set(key, bytes)`, `get(key)`, which waits, and `add(key, number)`."""

    def __init__(self, store: Any, rank: int, size: int, patience_s: float = _PATIENCE_S) -> None:
        self.store, self.rank, self.size, self._patience_s, self._round = store, rank, size, patience_s, 0
        store.set_timeout(timedelta(seconds=patience_s))

    def _key(self, *parts: int) -> str:
        return "rdmakit-doctor/" + "/".join(map(str, parts))

    def _get(self, key: str, source: int) -> Any:
        try:
            return pickle.loads(self.store.get(key))
        except RuntimeError as error:  # torch.distributed.DistStoreError, DistNetworkError
            raise HangError(f"rank {source} did not come", value=f"{self._patience_s:g} s", rule=str(error)[:200],
                            remedy="look at that rank's own output: it failed, or never started") from None  # fmt: skip

    def all_gather(self, value: Any) -> list[Any]:
        self._round += 1
        self.store.set(self._key(self._round, self.rank), pickle.dumps(value))
        return [self._get(self._key(self._round, source), source) for source in range(self.size)]

    def exchange(self, values: list[Any]) -> list[Any]:
        self._round += 1
        for peer, value in enumerate(values):
            self.store.set(self._key(self._round, self.rank, peer), pickle.dumps(value))
        return [self._get(self._key(self._round, source, self.rank), source) for source in range(self.size)]

    def barrier(self) -> None:
        self.all_gather(None)

    def leave(self) -> None:
        """Whoever has the store's server must be the last to go."""
        with suppress(RuntimeError):
            left = self.store.add(self._key(0), 1)
            if left == self.size:
                self.store.set(self._key(0, 0), b"")
            if self.rank == 0:
                self.store.get(self._key(0, 0))


class MpiMeeting:
    """Over an mpi4py communicator."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank, self.size = comm, int(comm.Get_rank()), int(comm.Get_size())

    def all_gather(self, value: Any) -> list[Any]:
        return list(self.comm.allgather(value))

    def exchange(self, values: list[Any]) -> list[Any]:
        return list(self.comm.alltoall(values))

    def barrier(self) -> None:
        self.comm.Barrier()


def torch_store(of: Launched) -> Any:
    """The store that torchrun's ranks have. NotAvailable without torch, or when they do not meet."""
    from rdmakit.ep import tensors

    if not os.environ.get("MASTER_ADDR"):
        raise BadArgument("RANK and WORLD_SIZE without MASTER_ADDR", value=f"rank {of.rank} of {of.size}",
                          rule="ranks meet at MASTER_ADDR, MASTER_PORT, as torchrun sets them",
                          remedy="start them by torchrun, set both, or pass --alone")  # fmt: skip
    try:
        torch = tensors.torch()
    except NotAvailable as error:
        raise NotAvailable("torch is missing", value=error.value, rule="ranks of torchrun meet through torch's store",
                           remedy="pip install torch; or pass --alone") from None  # fmt: skip
    try:
        patience = timedelta(seconds=_PATIENCE_S)
        store, _, _ = next(torch.distributed.rendezvous("env://", timeout=patience))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        raise NotAvailable("ranks do not meet", value=where, rule=str(error)[:200],
                           remedy="is the port open and free, the address rank 0's?") from None  # fmt: skip
    return store


@contextmanager
def meeting(of: Launched) -> Iterator[Meeting]:
    """All ranks of a launch; NotAvailable where neither torch nor mpi4py is there to meet through."""
    if of.how == "torchrun":
        met = StoreMeeting(torch_store(of), of.rank, of.size)
        yield met
        met.leave()
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise NotAvailable(f"{of.how} started {of.size} ranks, and mpi4py is missing", value=str(error),
                           rule="ranks meet through torch.distributed or mpi4py",
                           remedy="pip install mpi4py, start by torchrun, or pass --alone") from None  # fmt: skip
    yield MpiMeeting(MPI.COMM_WORLD)
