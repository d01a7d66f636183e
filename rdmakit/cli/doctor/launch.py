"""Which launcher started this process as one of many.

Leans on errors. torchrun says RANK and WORLD_SIZE, MPI and Slurm have variables of their own. rdmakit launches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rdmakit.errors import BadArgument

__all__ = ["Launched", "launched"]

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
