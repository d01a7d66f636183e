"""The JSON object of `rdmakit doctor --json`, and its schema (JSON Schema 2020-12).

Leans on check, machine.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import rdmakit
from rdmakit.cli.doctor.check import VERDICTS, Result
from rdmakit.cli.doctor.machine import Machine

__all__ = ["SCHEMA", "as_json"]

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_CHECK = {
    "type": "object",
    "required": ["name", "group", "verdict", "said", "remedy", "link", "facts"],
    "additionalProperties": False,
    "properties": {
        "name": _TEXT,
        "group": _TEXT,
        "verdict": {"enum": list(VERDICTS)},
        "said": {"type": "string", "minLength": 1},
        "remedy": _TEXT,
        "link": {"type": "string", "pattern": "^docs/doctor\\.md#[a-z0-9-]+$"},
        "facts": {"type": "object"},
    },
}
_PLACE = {
    "type": "object",
    "required": ["name", "gid", "mtu", "link_layer"],
    "properties": {"name": _TEXT, "gid": _TEXT, "mtu": _COUNT, "link_layer": _TEXT},
}
_UNREACHED = {
    "type": "object",
    "required": ["source", "target", "rail", "why"],
    "properties": {"source": _COUNT, "target": _COUNT, "rail": {"type": "integer", "minimum": 1}, "why": _TEXT},
}
_FIGURES = {"type": "object", "required": ["pass", "warn", "fail", "skip"], "additionalProperties": _COUNT}
_RANKS = {
    "type": "object",
    "required": ["size", "hosts", "figures", "reach"],
    "additionalProperties": False,
    "properties": {
        "size": {"type": "integer", "minimum": 2},
        "hosts": {"type": "array", "items": _TEXT},
        "figures": {"type": "array", "items": _FIGURES},
        "reach": {
            "type": "object",
            "required": ["places", "refusals", "tried", "unreached"],
            "additionalProperties": False,
            "properties": {
                "places": {"type": "array", "items": {"type": "array", "items": _PLACE}},
                "refusals": {"type": "array", "items": _TEXT},
                "tried": _COUNT,
                "unreached": {"type": "array", "items": _UNREACHED},
            },
        },
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "rdmakit doctor --json",
    "type": "object",
    "required": ["ok", "figures", "config", "checks"],
    "additionalProperties": False,
    "properties": {
        "ok": {"type": "boolean", "description": "no check fails, on any rank"},
        "figures": _FIGURES,
        "config": {
            "type": "object",
            "required": ["rdmakit", "python", "platform", "root", "host"],
            "additionalProperties": _TEXT,
        },
        "checks": {"type": "array", "minItems": 1, "items": _CHECK},
        "ranks": _RANKS,
    },
}


def as_json(machine: Machine, results: Sequence[Result]) -> dict[str, Any]:
    """`ok`, `figures` (how many of each verdict), `config` and `checks`."""
    counts = Counter(result.answer.verdict for result in results)
    return {
        "ok": counts["FAIL"] == 0,
        "figures": {verdict.lower(): counts[verdict] for verdict in VERDICTS},
        "config": {
            "rdmakit": rdmakit.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "root": str(machine.root),
            "host": platform.node(),
        },
        "checks": [result.to_dict() for result in results],
    }
