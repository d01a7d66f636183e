"""Blocks of one range of memory, handed out and taken back: what a dispatch receives lies where peers can write it.

Leans on errors. Plain bookkeeping of offsets: whoever gives a block back has seen to it that nobody uses it any more.
"""

from __future__ import annotations

import threading
from bisect import bisect

from rdmakit.errors import BadArgument

__all__ = ["Pool"]

ALIGNMENT = 128


class Pool:
    """`nbytes` of memory from offset `begin` on. First fit; neighbours that are free are one.

    >>> pool = Pool(0, 1024)
    >>> a, b = pool.take(100), pool.take(100)
    >>> pool.give(a); pool.give(b); (a, b, pool.largest)
    (0, 128, 1024)
    """

    def __init__(self, begin: int, nbytes: int) -> None:
        self.begin, self.nbytes = begin, nbytes // ALIGNMENT * ALIGNMENT
        self._free: list[tuple[int, int]] = [(begin, begin + self.nbytes)] if self.nbytes else []  # in order
        self._taken: dict[int, int] = {}
        self._lock = threading.Lock()  # blocks come back from whatever thread collects garbage

    @property
    def largest(self) -> int:
        """Bytes of the largest block that can be taken."""
        return max((end - begin for begin, end in self._free), default=0)

    @property
    def used(self) -> int:
        """Bytes that are out."""
        return sum(self._taken.values())

    def take(self, nbytes: int) -> int:
        """Offset of a block. BadArgument when none is large enough."""
        size = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        with self._lock:
            for index, (begin, end) in enumerate(self._free):
                if end - begin >= size:
                    self._free[index : index + 1] = [(begin + size, end)] if end - begin > size else []
                    self._taken[begin] = size
                    return begin
        raise BadArgument(
            "no room for what a dispatch brings",
            value=nbytes,
            rule=f"the largest free block has {self.largest} of {self.nbytes} bytes; {self.used} are out",
            remedy="drop tensors of earlier dispatches, or make the buffer with more num_nvl_bytes",
        )

    def give(self, begin: int) -> None:
        """Take a block back."""
        with self._lock:
            end = begin + self._taken.pop(begin)
            index = bisect(self._free, (begin, end))
            self._free.insert(index, (begin, end))
            for left in (index, index - 1):  # with the one behind, then the one before
                if 0 <= left < len(self._free) - 1 and self._free[left][1] == self._free[left + 1][0]:
                    self._free[left : left + 2] = [(self._free[left][0], self._free[left + 1][1])]

    def holds(self, offset: int, nbytes: int) -> bool:
        """Whether a range lies in here."""
        return self.begin <= offset and offset + nbytes <= self.begin + self.nbytes
