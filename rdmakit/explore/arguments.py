"""Mutants that nothing can notice, each with the reason: none at present.

Keyed by file, primitive, change and the text of the line, so that an argument ends with the line that it is about. A
bounded-exhaustive pass is its witness.
"""

from __future__ import annotations

__all__ = ["ARGUED"]

ARGUED: dict[tuple[str, str, str, str], str] = {}
