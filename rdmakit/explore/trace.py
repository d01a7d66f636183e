"""The steps of one recorded schedule, and what one wants to ask about them: who wrote this word, who rang, who looks.

Leans on names. A word is 4 bytes, as in the memory model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from rdmakit.explore.names import Names

__all__ = ["BARRIER", "FENCE", "LOAD", "NOTE", "STORE", "UPDATE", "Step", "Trace"]

LOAD, STORE, UPDATE, FENCE, BARRIER, _, NOTE = range(7)  # enum class Step::Kind, emu/explore/weak_memory.hpp

Step = dict[str, Any]


def _words(step: Step) -> Iterator[int]:
    first = step["address"] & ~3
    yield from range(first, step["address"] + max(1, step["bytes"]), 4)


class Trace:
    """All steps of a schedule, by number and by word."""

    def __init__(self, steps: list[Step], names: Names) -> None:
        self.steps, self.names = steps, names
        self.by_number = {step["number"]: step for step in steps}
        names.active = {step["agent"] for step in steps if step["kind"] == NOTE or names.raw(step["address"])}
        self._writes: dict[int, list[Step]] = {}
        self._touched: dict[int, set[int]] = {}
        for step in steps:
            if step["kind"] not in (LOAD, STORE, UPDATE):
                continue
            for word in _words(step):
                self._touched.setdefault(word, set()).add(step["agent"])
                if step["kind"] != LOAD:
                    self._writes.setdefault(word, []).append(step)
        self.rings = self._find_rings()

    # ---- who touches what
    def shared(self, step: Step) -> bool:
        """Whether anybody else touches these words in this schedule."""
        return any(self._touched[word] != {step["agent"]} for word in _words(step))

    def written_by_others(self, step: Step) -> bool:
        """Whether anybody else writes these words in this schedule."""
        return any(w["agent"] != step["agent"] for word in _words(step) for w in self._writes.get(word, ()))

    def newest_before(self, step: Step) -> Step | None:
        """The newest write of another agent to these words that a reading step could have seen."""
        found = [
            write
            for word in _words(step)
            for write in self._writes.get(word, ())
            if write["number"] < step["number"] and write["agent"] != step["agent"]
        ]
        return max(found, key=lambda write: int(write["number"]), default=None)

    def first_after(self, step: Step) -> Step | None:
        """The first write of another agent to these words behind a step."""
        found = [
            write
            for word in _words(step)
            for write in self._writes.get(word, ())
            if write["number"] > step["number"] and write["agent"] != step["agent"]
        ]
        return min(found, key=lambda write: int(write["number"]), default=None)

    def value_at(self, write: Step, address: int, size: int) -> int | None:
        """What a write put at an address; None where the recording does not tell."""
        at = address - write["address"]
        if write["kind"] in (STORE, UPDATE) and 0 <= at and at + size <= min(8, write["bytes"]):
            return int.from_bytes(int(write["value"]).to_bytes(8, "little")[at : at + size], "little")
        if at < 0 or at + size > write["bytes"]:
            return None
        if self._writes[address & ~3][-1] is not write:  # memory holds what a later one has put there
            return next(
                (
                    int(step["value"])
                    for step in self.steps
                    if step["kind"] == LOAD and step["come_from"] == write["number"]
                    and (step["address"], step["bytes"]) == (address, size)
                ),
                None,
            )
        return int.from_bytes(self.memory(address, size), "little")

    def last_write(self, step: Step) -> bool:
        """Whether nobody writes these words behind a writing step: memory still holds what it put there."""
        return all(self._writes[word][-1] is step for word in _words(step))

    @staticmethod
    def memory(address: int, size: int) -> bytes:
        """Bytes as the schedule has left them; the world stays so until the next one."""
        return ctypes.string_at(address, size)

    def access(self, side: dict[str, Any], address: int) -> Step | None:
        """The step that is one side of a race."""
        kinds = (STORE, UPDATE) if side["write"] else (LOAD, UPDATE)
        for step in reversed(self.steps):
            here = step["agent"] == side["agent"] and (step["file"], step["line"]) == (side["file"], side["line"])
            if here and step["kind"] in kinds and address & ~3 in _words(step):
                return step
        return None

    # ---- doorbells
    def _find_rings(self) -> dict[int, tuple[Step | None, Step]]:
        """Steps at which kernels take a doorbell register's address in hand, and the steps that hear of it, by either's
        number. The store into the register is no access to memory, and recorded nowhere."""
        found: dict[int, tuple[Step | None, Step]] = {}
        registers: dict[tuple[int, int], int] = {}
        for at, heard in enumerate(self.steps):
            if heard["kind"] != NOTE or heard["note"] != "takes the doorbell":
                continue
            hca, qpn = self.names.queue(heard["agent"])
            if (hca, qpn) not in registers:
                registers[hca, qpn] = self.names.register(hca, qpn)
            rung = None
            for step in self.steps[:at]:
                if step["kind"] == LOAD and step["bytes"] == 8 and step["value"] == registers[hca, qpn]:
                    mine = not self.names.is_nic(step["agent"])
                    if mine and step["number"] not in found:
                        rung = step
                        break
            found[heard["number"]] = (rung, heard)
            if rung is not None:
                found[rung["number"]] = (rung, heard)
        return found
