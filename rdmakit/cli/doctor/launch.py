"""Which launcher started this process as one of many, and how its ranks exchange small objects.

Leans on ep.rendezvous. torchrun says RANK and WORLD_SIZE, MPI and Slurm have variables of their own; whoever started
the ranks also brings the store: torch.distributed (gloo) or mpi4py. rdmakit launches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["Launched", "launched", "meeting"]

# Launcher → variables of rank, size and rank within the host (Open MPI; MPICH and Intel MPI by Hydra; Slurm's srun).
_MPI = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


@dataclass(frozen=True)
class Launched:
    """Rank `rank` of `size`, number `local` on its host; `how`: "torchrun", or one of MPI's names."""

    how: str
    rank: int
    size: int
    local: int


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise BadArgument(f"{name} is no number", value=text, rule="as torchrun and MPI set it",
                          remedy=f"unset {name}, or start the ranks by torchrun, mpirun or srun")  # fmt: skip
    return int(text)


def launched(environment: Mapping[str, str]) -> Launched | None:
    """None for a process that is alone. BadArgument for half a set of variables.

    >>> launched({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    Launched(how='torchrun', rank=3, size=8, local=1)
    >>> launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    True
    """
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if (rank is None) != (size is None):
        raise BadArgument("half of a launcher's variables", value=f"RANK {rank}, WORLD_SIZE {size}",
                          rule="torchrun sets RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
                          remedy="set or unset both, or pass --alone")  # fmt: skip
    found = None
    if rank is not None and size is not None:
        found = Launched("torchrun", rank, size, _number(environment, "LOCAL_RANK") or 0)
    for how, (of_rank, of_size, of_local) in _MPI.items():
        rank, size = _number(environment, of_rank), _number(environment, of_size)
        if found is None and rank is not None and size is not None:
            found = Launched(how, rank, size, _number(environment, of_local) or 0)
    return found if found is not None and found.size > 1 else None


@contextmanager
def meeting(of: Launched) -> Iterator[Any]:
    """A Rendezvous of all ranks; NotAvailable where neither torch nor mpi4py is installed to be one."""
    from rdmakit.ep import tensors
    from rdmakit.ep.rendezvous import introduce

    if of.how == "torchrun":
        if not os.environ.get("MASTER_ADDR"):
            raise BadArgument("RANK and WORLD_SIZE without MASTER_ADDR", value=f"rank {of.rank} of {of.size}",
                              rule="ranks meet at MASTER_ADDR, MASTER_PORT, as torchrun sets them",
                              remedy="start them by torchrun, set both, or pass --alone")  # fmt: skip
        distributed = tensors.torch().distributed
        distributed.init_process_group("gloo")
        try:
            yield introduce(group=distributed.group.WORLD)
        finally:
            distributed.destroy_process_group()
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise NotAvailable(f"{of.how} started {of.size} ranks, and mpi4py is missing", value=str(error),
                           rule="ranks meet through torch.distributed or mpi4py",
                           remedy="pip install mpi4py, start by torchrun, or pass --alone") from None  # fmt: skip
    yield introduce(comm=MPI.COMM_WORLD)
