"""How the ranks of a Buffer find each other: a torch process group or an mpi4py communicator, whichever started them.

Also which of them share a host. Leans on connect and ep.tensors. rdmakit launches nothing: torchrun, Slurm or mpirun
do. It needs two collectives, both when a Buffer is made or destroyed, never on the way of a token.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from rdmakit.connect import MpiRendezvous, Rendezvous, StoreRendezvous
from rdmakit.device import device_strings
from rdmakit.ep import tensors
from rdmakit.errors import BadArgument

__all__ = [
    "DEVICES",
    "RANKS_PER_HOST",
    "Rendezvous",
    "asked_devices",
    "asked_ranks_per_host",
    "host_identity",
    "introduce",
    "runner_host",
]

RANKS_PER_HOST = "RDMAKIT_RANKS_PER_HOST"
"""Environment: how many ranks, in order, make a host. One machine then plays several."""

DEVICES = "RDMAKIT_DEVICES"
"""Environment: this rank's RDMA devices, in the order of the ports: "mlx5_0,mlx5_1". With it they join
hosts, also those that one machine plays."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # man 5 proc: one value a boot, the same in every container


class _Torch:
    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.size = int(group.rank()), int(group.size())

    def all_gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        tensors.torch().distributed.all_gather_object(found, value, self.group)
        return found

    def barrier(self) -> None:
        # The values are small, and `barrier` of some backends guesses a device.
        self.all_gather(None)


def introduce(group: Any = None, comm: Any = None) -> Rendezvous:
    """A Rendezvous over a torch `ProcessGroup`, or an `mpi4py.MPI.Comm` where there is no group; one of
    `rdmakit.connect.meet` as it is.
    """
    if isinstance(comm, StoreRendezvous | MpiRendezvous):
        return comm
    if group is not None:
        if not (callable(getattr(group, "rank", None)) and callable(getattr(group, "size", None))):
            raise BadArgument("group is no process group", value=type(group).__name__,
                              rule="a torch.distributed.ProcessGroup",
                              remedy="torch.distributed.new_group(…); an mpi4py communicator goes to comm=",
                              )  # fmt: skip
        return _Torch(group)
    if comm is None:
        raise BadArgument("nobody to communicate with", value="group None, comm None", rule="either group or comm",
                          remedy="Buffer(torch.distributed.group.WORLD, …) or Buffer(None, …, comm=MPI.COMM_WORLD)",
                          )  # fmt: skip
    if not callable(getattr(comm, "allgather", None)):
        raise BadArgument("comm is no communicator", value=type(comm).__name__, rule="an mpi4py.MPI.Comm",
                          remedy="pass MPI.COMM_WORLD; a torch process group goes to group=")  # fmt: skip
    return MpiRendezvous(comm)


def host_identity() -> str:
    """The same text in all processes of one running kernel, and in no others."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def runner_host() -> str:
    """The same text in all processes that can share memory and RDMA devices, where kernels run on the CPU.

    Those of one kernel, of one name, that see each other and one network: a container, or one of the lab's hosts, is a
    host of its own.
    """
    return " ".join((host_identity(), socket.gethostname(), _namespace("pid"), _namespace("net")))


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")  # man 7 namespaces
    except OSError:
        return ""


def asked_ranks_per_host() -> int | None:
    """What the environment says, None where it says nothing. BadArgument for what is no number of ranks."""
    text = os.environ.get(RANKS_PER_HOST, "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise BadArgument(f"{RANKS_PER_HOST} is no number of ranks", value=text, rule="a positive integer",
                          remedy=f"unset it, or set {RANKS_PER_HOST}=1 for hosts of one GPU")  # fmt: skip
    return int(text) if text else None


def asked_devices() -> list[str]:
    """Device strings that the environment says, in its order; none where it says nothing."""
    return device_strings(os.environ.get(DEVICES, ""))
