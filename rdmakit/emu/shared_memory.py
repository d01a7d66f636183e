"""Memory that processes of one machine share: made by one, mapped by whoever is told where, gone with the last of them.

Leans on errors, NumPy. It is a file without a name (man memfd_create), which others open through /proc: nothing is left
behind, whoever dies when. Processes have to see each other there: one machine, one PID namespace, one user.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from typing import Any

import numpy as np

from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["SharedMemory", "map_shared"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# Nobody makes the file shorter under those who have mapped it (man memfd_create, "File sealing").
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedMemory:
    """`nbytes` of zeroed memory, given by the system when touched; `array` is uint8 [nbytes], page-aligned.

    `told` is what others need for `map_shared`, as long as this object lives: numbers only. The memory lives as long as
    any process has an array of it. BadArgument for a size that cannot be had.

    >>> memory = SharedMemory(8, "heap of rank 0"); there = map_shared(memory.told, "heap of rank 0")
    >>> memory.array[3] = 7; int(there[3])
    7
    """

    def __init__(self, nbytes: int, name: str) -> None:
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or nbytes < 1:
            raise BadArgument(f"no size for the {name}", value=nbytes, rule="bytes, 1 or more",
                              remedy="ask for some memory")  # fmt: skip
        file = os.memfd_create(f"rdmakit: {name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._file = weakref.finalize(self, os.close, file)
        self.array = _sized(file, nbytes, name)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        status = os.fstat(file)
        where = {"device": status.st_dev, "inode": status.st_ino, "nbytes": nbytes}
        self.told = {"pid": os.getpid(), "file": file, **where}


def _sized(file: int, nbytes: int, name: str) -> Bytes:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    why = f"at most {there}, the memory of this machine"
    if nbytes <= there:
        try:
            os.ftruncate(file, nbytes)
            return np.frombuffer(mmap.mmap(file, nbytes), np.uint8)
        except OSError as error:
            why = f"the system refuses: {error.strerror}"
    raise BadArgument(f"no memory for the {name}", value=f"{nbytes} bytes", rule=why,
                      remedy="ask for less (of a Buffer: num_nvl_bytes, num_rdma_bytes); every rank of a host has one",
                      )  # fmt: skip


def map_shared(told: dict[str, int], name: str) -> Bytes:
    """Memory that a process of this machine `told` of, uint8 [nbytes]. NotAvailable where it cannot be reached."""
    path = f"/proc/{told['pid']}/fd/{told['file']}"
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _unreachable(name, f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(file)
        found = {"device": status.st_dev, "inode": status.st_ino, "nbytes": status.st_size}
        if any(found[key] != told[key] for key in found):  # a process of another namespace has that number here
            raise _unreachable(name, f"{path} is another file")
        return np.frombuffer(mmap.mmap(file, told["nbytes"]), np.uint8)
    except OSError as error:
        raise _unreachable(name, f"{path}: {error.strerror}") from None
    finally:
        os.close(file)


def _unreachable(name: str, why: str) -> NotAvailable:
    return NotAvailable(
        f"the {name} cannot be mapped", value=why,
        rule="processes that share memory run on one machine, in one PID namespace, as one user, and are alive",
        remedy="start them in one container, as one user, and look whether the other one still runs",
    )  # fmt: skip
