"""Which headers a source includes, and a key that changes with any of them.

Leans on device.source. CuPy keeps compiled kernels by their source and options alone: an edited header would go
unnoticed, so the key becomes one of the options (`Module`). Conditional includes count whatever their condition is: at
worst a kernel is compiled once more than it had to be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from rdmakit.device.source import blanked

__all__ = ["headers_of", "source_key"]

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^<>"\n]+)[>"]', re.MULTILINE)


def _included(code: str) -> list[tuple[bool, str]]:
    """(whether in quotes, name) of each include that is no comment."""
    scan = blanked(code)
    hash_there = {found.start() for found in re.finditer(r"^[ \t]*#[ \t]*include\b", scan, re.MULTILINE)}
    return [(found[1] == '"', found[2]) for found in _INCLUDE.finditer(code) if found.start() in hash_there]


def headers_of(code: str, include_dirs: Iterable[str | Path]) -> dict[Path, bytes]:
    """Every header that `code` includes, at whatever depth, with its bytes; those of the compiler itself are left out.

    `include_dirs`: where `<…>` and `"…"` are looked for, in this order; `"…"` beside the including header first.
    """
    directories = [Path(directory) for directory in include_dirs]
    found: dict[Path, bytes] = {}
    todo: list[tuple[Path | None, str]] = [(None, code)]
    while todo:
        beside, text = todo.pop()
        for quoted, name in _included(text):
            places = [beside, *directories] if quoted and beside is not None else directories
            path = next((place / name for place in places if (place / name).is_file()), None)
            if path is None or path.resolve() in found:
                continue
            path = path.resolve()
            found[path] = path.read_bytes()
            todo.append((path.parent, found[path].decode("utf-8", errors="replace")))
    return found


def source_key(code: str, include_dirs: Iterable[str | Path]) -> str:
    """128 bits, in hexadecimal, of `code` and of all that it includes.

    >>> source_key("int a;", []) == source_key("int a;", [])
    True
    """
    digest = hashlib.blake2b(code.encode(), digest_size=16)
    for path, content in sorted(headers_of(code, include_dirs).items()):
        digest.update(f"\0{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
