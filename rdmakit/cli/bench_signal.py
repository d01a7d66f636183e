"""`rdmakit bench signal`: what each strategy of the sequence lock costs, on one path and on many. Modelled time.

Leans on signal.modelled.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LENGTHS", "signal"]

# A word; a KiB; a token of 7168 FP8 values with its scales.
LENGTHS = (8, 1024, 7392)
_PIPELINE = 8  # transfers under way


def signal(*, seed: int = 1, lengths: tuple[int, ...] = LENGTHS, **_: Any) -> dict[str, Any]:
    """The table: for each strategy and length, one transfer alone and eight under way, on one path and on many."""
    from rdmakit.signal.modelled import NAMES, Modelled, modelled

    figures: dict[str, float] = {}
    lines = [
        "Modelled time (no hardware was measured) from the sender's first instruction until the last transfer is "
        "signed off."
    ]
    ok = True
    for length in lengths:
        lines += [
            "",
            f"{length} bytes    one path: alone, {_PIPELINE} under way   many paths: alone, {_PIPELINE} under way"
            "   WQEs  doorbells  bytes on the wire",
        ]
        rows: dict[str, list[Modelled]] = {}
        for name in NAMES:
            row = [
                modelled(name, length, count=n, many_paths=many, seed=seed)
                for many in (False, True)
                for n in (1, _PIPELINE)
            ]
            rows[name] = row
            ok = ok and all(cell.ok for cell in row)
            right = "" if name != "write" else "   wrong on many paths"
            us = [f"{cell.ns / 1e3:8.2f} µs" for cell in row]
            lines.append(
                f"  {name:<10} {us[0]} {us[1]}     {us[2]} {us[3]}     {row[1].wqes:4.1f} {row[1].doorbells:8.1f}"
                f" {row[1].wire_bytes:10.0f}{right}"
            )
            for at, cell in zip(("one", "pipe", "many_one", "many_pipe"), row, strict=True):
                figures[f"{name.replace('-', '_')}_{length}_{at}_ns"] = cell.ns
        amo, eager = rows["amo"], rows["eager-crc"]
        waits = amo[2].ns - amo[0].ns
        saved = 1 - eager[2].ns / amo[2].ns
        lines.append(
            f"  an atomic on many paths waits {waits / 1e3:.2f} µs longer: one round trip; a flag in the payload saves "
            f"{saved:.0%} of a lone transfer there"
        )
        figures[f"atomic_many_paths_extra_{length}_ns"] = waits
        figures[f"payload_flag_saves_{length}"] = round(saved, 4)
    return {"ok": ok, "figures": figures, "lines": lines}
