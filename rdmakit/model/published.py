"""What others have published, and which of it the model was fitted on: everything else is a prediction.

Leans on errors. Sources: DeepEP V1's README (H800 and ConnectX-7 400 Gb/s InfiniBand; 4096 tokens, hidden 7168, top-8
of 256 in at most 4 node groups, FP8 dispatch, BF16 combine; low latency 128 tokens) and its pull request 130 (44 → 58
GB/s). GB/s are logical: they count tokens that stay on their own host.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.errors import BadArgument

__all__ = ["POINTS", "Point", "point_of"]

_TABLE = "DeepEP V1 README"
_BEFORE = "DeepEP V1 README before pull request 130"


@dataclass(frozen=True)
class Point:
    """`value` in `unit`: "GB/s" (logical) or "us". `fitted`: the model's free parameters were chosen on it. `step` of
    the ladder that it corresponds to.
    """

    kernel: str
    op: str
    ranks: int
    step: int
    value: float
    unit: str
    source: str
    fitted: bool = False

    @property
    def name(self) -> str:
        """As tables and figures call it.

        >>> POINTS[0].name
        'normal_dispatch_ep16_step0'
        """
        step = f"_step{self.step}" if self.step != 5 else ""
        return f"{self.kernel}_{self.op}_ep{self.ranks}{step}"

    @property
    def series(self) -> tuple[str, str]:
        """Points that a ruler is laid through together."""
        return self.kernel, self.op


def _normal(op: str, step: int, source: str, values: dict[int, float]) -> list[Point]:
    return [Point("normal", op, n, step, v, "GB/s", source, (op, n) == ("dispatch", 32)) for n, v in values.items()]


def _low_latency(op: str, values: dict[int, float]) -> list[Point]:
    return [Point("ll", op, n, 5, v, "us", _TABLE, n in (8, 64)) for n, v in values.items()]


POINTS: tuple[Point, ...] = (
    *_normal("dispatch", 0, _BEFORE, {16: 43, 32: 44, 64: 46}),  # 44 stands in pull request 130, too
    *_normal("combine", 0, _BEFORE, {16: 43, 32: 47, 64: 45}),
    *_normal("dispatch", 5, _TABLE, {16: 43, 32: 58, 64: 51}),
    *_normal("combine", 5, _TABLE, {16: 43, 32: 57, 64: 50}),
    *_low_latency("dispatch", {8: 77, 16: 118, 32: 155, 64: 173, 128: 192, 256: 194}),
    *_low_latency("combine", {8: 114, 16: 195, 32: 273, 64: 314, 128: 369, 256: 360}),
)


def point_of(kernel: str, op: str, ranks: int, step: int = 5) -> Point | None:
    """The published point, or None. BadArgument for no kernel or operation."""
    if kernel not in ("normal", "ll") or op not in ("dispatch", "combine"):
        raise BadArgument(
            "no such operation",
            value=(kernel, op),
            rule="normal or ll, dispatch or combine",
            remedy="choose one of each",
        )
    found = [p for p in POINTS if (p.kernel, p.op, p.ranks, p.step) == (kernel, op, ranks, step)]
    return found[0] if found else None
