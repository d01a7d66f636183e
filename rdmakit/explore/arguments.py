"""Mutants that nothing can notice, each with the reason. Keyed by file, primitive, change and the text of the line."""

from __future__ import annotations

__all__ = ["ARGUED"]

ARGUED: dict[tuple[str, str, str, str], str] = {}
