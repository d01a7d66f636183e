"""Notebook 03: the bytes of an RDMA WRITE, compared with `rdmakit.layout.encode` for random arguments."""

from __future__ import annotations

import random

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.layout import CtrlFlag, Sge, decode, encode

_ROUNDS = 40


def _arguments(dice: random.Random, number: int) -> dict[str, int | bool]:
    """Every field gets all of its bits; small indices come first, so that mistakes are met one by one."""
    return {
        "index": dice.randrange(1 << (8 if number < 10 else 16 if number < 20 else 40)),
        "qpn": dice.randrange(1, 1 << 24),
        "raddr": dice.randrange(1 << 64),
        "rkey": dice.randrange(1 << 32),
        "laddr": dice.randrange(1 << 64),
        "lkey": dice.randrange(1 << 32),
        "length": dice.randrange(1, 1 << 30),
        "signalled": number % 3 != 2,
    }


def _golden(given: dict[str, int | bool]) -> bytes:
    return encode.write(
        index=given["index"],
        qpn=given["qpn"],
        raddr=given["raddr"],
        rkey=given["rkey"],
        sges=Sge(given["laddr"], given["length"], given["lkey"]),
        flags=CtrlFlag.CQ_UPDATE if given["signalled"] else CtrlFlag.NONE,
    )


def _place(golden: bytes, byte: int) -> str:
    """The field that holds a byte, in the words of the picture."""
    for segment in decode(golden, "wqe").segments:
        for field in segment.fields:
            if field.offset <= byte < field.offset + field.size:
                return f"field {field.name} of the {segment.name} segment"
    return "behind the last segment, where nobody reads: leave zeros"


@exercise(
    "03.golden_bytes",
    hints=(
        "Go through the picture field by field. Which comes from which argument, and which never changes?",
        "int.to_bytes(n, 'big') makes n bytes and fails where the number needs more: which must be cut?",
        "Two fields often share four bytes: shift the upper one left and put the lower one in with |.",
    ),
)
def golden_bytes(trial: Trial, function: object) -> None:
    """64 bytes, equal to the encoder's, for 40 random WRITEs."""
    dice = random.Random(3)
    for number in range(_ROUNDS):
        given = _arguments(dice, number)
        answer = trial.call(function, **given)
        trial.is_a(answer, (bytes, bytearray), "what write_wqe returns")
        trial.has_length(answer, 64, "what write_wqe returns")
        golden = _golden(given)
        for byte, (mine, right) in enumerate(zip(answer, golden, strict=True)):
            if mine != right:
                shown = ", ".join(f"{name}={value:#x}" for name, value in given.items())
                where = f"byte {byte} ({_place(golden, byte)})"
                raise Wrong(f"{where} is {mine:#04x}, which is not right.\nThe call: {shown}")
