"""Blocks of one range of memory, handed out and taken back: what a dispatch receives lies where peers can write it.

Leans on errors. Plain bookkeeping: addresses are offsets, and what has to happen before a block is used again is an
opaque mark that its last user left.
"""

from __future__ import annotations

import threading
from bisect import insort
from typing import Any

from rdmakit.errors import BadArgument

__all__ = ["Pool"]

ALIGNMENT = 128


class Pool:
    """`nbytes` of memory from offset `begin` on. First fit; neighbours that are free are one.

    >>> pool = Pool(0, 1024)
    >>> a, b = pool.take(100)[0], pool.take(100)[0]
    >>> pool.give(a); pool.give(b); (a, b, pool.largest)
    (0, 128, 1024)
    """

    def __init__(self, begin: int, nbytes: int) -> None:
        self.begin, self.nbytes = begin, nbytes // ALIGNMENT * ALIGNMENT
        # Free ranges in order: (begin, end, marks of those who used it last).
        self._free: list[tuple[int, int, tuple[Any, ...]]] = [(begin, begin + self.nbytes, ())] if self.nbytes else []
        self._taken: dict[int, int] = {}
        self._lock = threading.Lock()  # blocks come back from whatever thread collects garbage

    @property
    def largest(self) -> int:
        """Bytes of the largest block that can be taken."""
        return max((end - begin for begin, end, _ in self._free), default=0)

    @property
    def used(self) -> int:
        """Bytes that are out."""
        return sum(self._taken.values())

    def take(self, nbytes: int) -> tuple[int, tuple[Any, ...]]:
        """Offset of a block, and the marks to wait for before it is written. BadArgument when none is large enough."""
        size = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        with self._lock:
            for index, (begin, end, marks) in enumerate(self._free):
                if end - begin < size:
                    continue
                rest = [(begin + size, end, marks)] if end - begin > size else []
                self._free[index : index + 1] = rest
                self._taken[begin] = size
                return begin, marks
        raise BadArgument(
            "no room for what a dispatch brings",
            value=nbytes,
            rule=f"the largest free block has {self.largest} of {self.nbytes} bytes; {self.used} are out",
            remedy="drop tensors of earlier dispatches, or make the buffer with more num_nvl_bytes",
        )

    def give(self, begin: int, mark: Any = None) -> None:
        """Take a block back; `mark` is handed to whoever takes any part of it next."""
        with self._lock:
            end = begin + self._taken.pop(begin)
            marks = () if mark is None else (mark,)
            insort(self._free, (begin, end, marks), key=lambda free: free[0])
            index = next(i for i, free in enumerate(self._free) if free[0] == begin)
            for left in (index, index - 1):  # with the one behind, then the one before
                if 0 <= left < len(self._free) - 1 and self._free[left][1] == self._free[left + 1][0]:
                    one, other = self._free[left], self._free[left + 1]
                    self._free[left : left + 2] = [(one[0], other[1], one[2] + other[2])]

    def holds(self, offset: int, nbytes: int) -> bool:
        """Whether a range lies in here."""
        return self.begin <= offset and offset + nbytes <= self.begin + self.nbytes
