"""Which source line an address in a compiled kernel belongs to, through binutils' addr2line and nm where they are
installed.

Leans on the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

__all__ = ["kernel_line", "source_line", "split_place"]

_PLACE = re.compile(r"\s*\[at (?P<path>.+)\+(?P<offsets>0x[0-9a-fx,]+)\]\s*$")
_OURS = re.compile(r"rdmakit/|exports of")
# The file that the author's text was written to for the compiler. g++ gives it to instructions that have no line,
# as the jump of `for (;;) {}` has none.
_NO_LINE = re.compile(r"kernel\.cpp:")


def split_place(why: str) -> tuple[str, str, list[int]]:
    """The reason, and the module and offsets that the runner put behind it; "" and none without them.

    >>> split_place("illegal access [at /tmp/k.so+0x1f0,0x20]")
    ('illegal access', '/tmp/k.so', [496, 32])
    """
    found = _PLACE.search(why)
    if found is None:
        return why, "", []
    return why[: found.start()], found["path"], [int(offset, 16) for offset in found["offsets"].split(",")]


def source_line(path: str, offsets: list[int]) -> str:
    """ "file:line" of the first of these instructions that is not in our own headers; "" when it cannot be told.

    `offsets` go from the innermost call outwards. Without addr2line, or debug information, nothing can be told.
    """
    tool = shutil.which("addr2line")
    if tool is None or not path or not offsets:
        return ""
    said = _said([tool, "-i", "-e", path, *(f"{offset:#x}" for offset in offsets)])
    places = [os.path.normpath(line.split(" ")[0]) for line in said]
    known = [
        place
        for place in places
        if not place.startswith("??") and not place.endswith((":0", ":?")) and not _NO_LINE.match(place)
    ]
    theirs = [place for place in known if not _OURS.match(place)]
    return (theirs or known or [""])[0]


def kernel_line(path: str, kernel: str) -> str:
    """ "file:line" where this kernel begins, for an instruction that has no line; "" when it cannot be told."""
    tool = shutil.which("nm")
    if tool is None or not path:
        return ""
    symbol = re.compile(rf"\S+ [tTW] (?:\w+::)*{re.escape(kernel)}\([^\t]*\t(\S+)$")
    found = [match[1] for match in map(symbol.match, _said([tool, "-lC", path])) if match]
    return os.path.normpath(found[0]) if found else ""


def _said(command: list[str]) -> list[str]:
    """Lines that a tool prints; none when it cannot."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
