"""Ranks as threads: each calls one function, and what any of them raises first is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def every_rank(size: int, function: Callable[[int], Any]) -> list[Any]:
    """`function(rank)` of all ranks at once: results by rank. An error of one is returned in its place."""
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = function(rank)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank still waits"
    return found


def results(size: int, function: Callable[[int], Any]) -> list[Any]:
    """As `every_rank`, but errors are raised."""
    found = every_rank(size, function)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found
