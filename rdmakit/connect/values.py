"""Values that ranks tell each other, as text: JSON, with bytes in it. Nothing that is read here is ever executed.

Leans on errors.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from rdmakit.errors import BadArgument

__all__ = ["from_text", "to_text"]

_BYTES = "__bytes__"


def _unknown(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if hasattr(value, "item"):  # a number of NumPy's
        return value.item()
    raise BadArgument("a value that ranks cannot exchange", value=type(value).__name__,
                      rule="numbers, text, bytes, None, and lists and dicts of them",
                      remedy="turn it into those; a tuple arrives as a list")  # fmt: skip


def _found(table: dict[str, Any]) -> Any:
    return base64.b64decode(table[_BYTES]) if list(table) == [_BYTES] else table


def to_text(value: Any) -> str:
    """One line. BadArgument for what cannot be told.

    >>> to_text({"gid": b"ab", "ports": (1, 2)})
    '{"gid": {"__bytes__": "YWI="}, "ports": [1, 2]}'
    """
    return json.dumps(value, default=_unknown)


def from_text(text: str) -> Any:
    """The inverse of `to_text`.

    >>> from_text('{"gid": {"__bytes__": "YWI="}}')
    {'gid': b'ab'}
    """
    return json.loads(text, object_hook=_found)
