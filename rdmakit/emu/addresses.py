"""What lies where: names of arrays, regions and rings, so that a report can say "credit[3]" instead of an
address.

Leans on NumPy. Entries vanish with the arrays that they name.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

__all__ = ["AddressBook"]


class AddressBook:
    """Names for ranges of addresses; the narrowest range that holds an address names it.

    >>> book = AddressBook()
    >>> flags = np.zeros(4, np.uint32)
    >>> book.add(flags, "flags")
    >>> book.name_of(flags.ctypes.data + 8), book.name_of(1)
    ('flags[2]', '')
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[list[tuple[int, int, int, str]], weakref.ref[Any]]] = {}
        self._next = 0

    def add(self, array: np.ndarray[Any, Any], name: str) -> None:
        """Name the memory of `array` as long as whatever owns it lives."""
        self.add_parts(array, [(0, array.nbytes, array.itemsize, name)])

    def add_parts(self, array: np.ndarray[Any, Any], parts: list[tuple[int, int, int, str]]) -> None:
        """Likewise parts of it: each begins so many bytes behind its first, has so many, items of so many, a name."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        number = self._next
        self._next += 1
        entries, base = self._entries, int(array.ctypes.data)
        keep = weakref.ref(owner, lambda _: entries.pop(number, None))
        entries[number] = ([(base + begin, nbytes, step, name) for begin, nbytes, step, name in parts], keep)

    def name_of(self, address: int) -> str:
        """The name with an index ("flags[2]", "ring + 0x40"); "" for memory that nobody named."""
        best: tuple[int, int, int, str] | None = None
        for parts, _ in list(self._entries.values()):
            for base, nbytes, step, name in parts:
                if base <= address < base + nbytes and (best is None or nbytes < best[1]):
                    best = (base, nbytes, step, name)
        if best is None:
            return ""
        base, nbytes, step, name = best
        offset = address - base
        if offset == 0 and step == nbytes:
            return name
        return f"{name}[{offset // step}]" if step > 1 and offset % step == 0 else f"{name} + {offset:#x}"
