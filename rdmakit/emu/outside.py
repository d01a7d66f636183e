"""Kernels on the CPU runner whose queue pairs are a real device's: what a GPU would do, with no GPU.

Leans on world. Kernels write WQEs and ring registers of devices that this world does not know, and wait for words that
those devices write, or that ranks in other processes write, whose memory is mapped here. When no kernel can go on, or
one polls and polls, the devices are let to work (`Provider.progress`: a proxy posts, a NIC needs nothing), and every
wait looks at its words again. Time is the machine's, and patience ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rdmakit.device import Context
from rdmakit.emu.hang import hang_error
from rdmakit.emu.runs import Run
from rdmakit.emu.world import World
from rdmakit.errors import BadArgument, HangError

__all__ = ["OutsideWorld"]

_SPINS = 200  # looks without news before others get the CPU for longer
_NAP_S = 50e-6
_LOOK_S = 0.2  # between two looks for what has broken


class OutsideWorld(World):
    """`gpus` GPUs of one host, and devices from elsewhere: `let_work(context)` for each that their kernels use.

    `run` ends with HangError, which says who waits for what, when nothing has moved for `patience_s`; or with what
    `look_for(broken)` found: `broken()` gives an error, or None while all is well.
    """

    def __init__(self, gpus: int = 1, *, patience_s: float = 30.0, seed: int = 0) -> None:
        if not 0 < patience_s < float("inf"):
            raise BadArgument("no end of patience", value=patience_s, rule="seconds, more than 0",
                              remedy="30, say: ranks of other hosts may be late by as much")  # fmt: skip
        super().__init__(hosts=1, gpus_per_host=gpus, ports=1, policy="fast", seed=seed)
        self.patience_s = patience_s
        self._outside: list[Context] = []
        self._broken: list[Callable[[], Exception | None]] = []
        self._reasons: list[Callable[[HangError], HangError | None]] = []
        self._deadline = self._next_look = 0.0
        self._idle = 0

    def let_work(self, context: Context) -> None:
        """Kernels use queue pairs of this device from now on."""
        if context not in self._outside:
            self._outside.append(context)

    def look_for(
        self, broken: Callable[[], Exception | None], reason: Callable[[HangError], HangError | None] | None = None
    ) -> None:
        """Ask this now and then while kernels wait; and `reason`, when patience has ended, for a better error."""
        self._broken.append(broken)
        if reason is not None:
            self._reasons.append(reason)

    def run(self) -> Run:
        """As `World.run`; see above."""
        try:
            return super().run()
        except HangError as hang:
            if hang.report is None:  # of `broken`: it knows why, and not who waited for what
                hang.report = hang_error(self._core.waiting(), self.addresses, self).report
                raise
            for reason in self._reasons:
                if (better := reason(hang)) is not None:
                    raise better from None
            raise

    def _drive(self) -> int:
        self._idle, self._next_look = 0, time.monotonic() + _LOOK_S
        self._deadline = time.monotonic() + self.patience_s
        outcome = int(self._core.run(self._beyond))
        self._work()  # what has been rung for last
        return outcome

    def _work(self) -> None:
        for context in self._outside:
            if not context.closed:
                context._provider.progress()

    def _beyond(self, moved: bool) -> bool:
        self._work()
        now = time.monotonic()
        if moved:
            self._idle, self._deadline = 0, now + self.patience_s
            return True
        self._idle += 1
        if self._idle > _SPINS:
            time.sleep(_NAP_S)
        if now > self._next_look:
            self._next_look = now + _LOOK_S
            for broken in self._broken:
                if (error := broken()) is not None:
                    raise error
        return now < self._deadline

    def __repr__(self) -> str:
        names = ", ".join(context.device.name for context in self._outside) or "no device yet"
        return f"<OutsideWorld: {len(self.ranks)} GPUs, kernels on the CPU runner, {names}>"

