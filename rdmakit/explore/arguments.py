"""Mutants that nothing can notice, each with the reason. Keyed by file, primitive, change and the text of the line."""

from __future__ import annotations

__all__ = ["ARGUED"]

_BELL = "if (qp.dialect == DoorbellDialect::last_wqe) fence<Scope::sys>();"
_LOAD_THEN_STORE = (
    "A load may change places with a relaxed store behind it (PTX); Explore performs the loads of a thread in their "
    "order, so it cannot show what the fence rules out."
)

ARGUED: dict[tuple[str, str, str, str], str] = {
    ("rdmakit/queue.cuh", "fence", what, _BELL): _LOAD_THEN_STORE for what in ("no fence", "scope cta", "scope gpu")
}
