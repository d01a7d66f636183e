"""docs/signals.md: its tables are what `rdmakit.signal` says. Run this file to print them anew."""

from __future__ import annotations

from pathlib import Path

from rdmakit.signal import Ordering, Reader, Strategy, cost, is_right, is_strong

PAGE = Path(__file__).resolve().parents[2] / "docs/signals.md"
KINDS = [(s, crc) for s in Strategy for crc in ((False, True) if s is Strategy.EAGER else (False,))]
MODES = [(o, r) for o in Ordering for r in Reader]
LENGTHS = (8, 7392)


def name(strategy: Strategy, crc: bool) -> str:
    return f"`{strategy.name.lower()}`" + " with `crc`" * crc


def modes() -> str:
    heads = [f"{o.name.lower().replace('_', ' ')}, {'GPU' if r is Reader.GPU else 'host'}" for o, r in MODES]
    rows = [["strategy", "signal", *heads], ["---"] * (2 + len(MODES))]
    for strategy, crc in KINDS:
        strength = "strong" if is_strong(strategy) else "none" if strategy is Strategy.SPLIT else "weak"
        marks = ["right" if is_right(strategy, *mode, crc) else "–" for mode in MODES]
        rows.append([name(strategy, crc), strength, *marks])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def costs() -> str:
    heads = [f"octets on the wire for {length} B" for length in LENGTHS]
    names = ["strategy", "WQEs", "doorbells", "round trips that the sender waits", *heads]
    rows = [names, ["---"] * len(names)]
    for strategy, crc in KINDS:
        if crc:  # as without
            continue
        first = cost(strategy, LENGTHS[0])
        numbers = [first.wqes, first.doorbells, first.extra_round_trips]
        rows.append([name(strategy, crc), *map(str, [*numbers, *(cost(strategy, n).wire_bytes for n in LENGTHS)])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_table_of_modes():
    assert modes() in PAGE.read_text(encoding="utf-8")


def test_table_of_costs():
    assert costs() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(modes(), costs(), sep="\n\n")
