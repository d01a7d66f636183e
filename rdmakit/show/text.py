"""How wide a text will be, and what to do when it is too wide: wrap, shrink, then cut with an ellipsis.

Leans on nothing. A picture made without a browser cannot ask how wide its letters are. The table below holds
advance widths (em) of DejaVu Sans, the widest of the fonts that `svg.SANS` may fall back on: an estimate that
errs to the wide side keeps every text inside its box. Bold is at most 1.12 times as wide.
"""

from __future__ import annotations

import unicodedata

BOLD = 1.12
_MONO = 0.605
_CLASSES = (
    ("' ijl", 0.32), (",./:;IJ\\|", 0.36), ("-f", 0.40), ("!()[]t", 0.44), ('"r', 0.48), ("*_`", 0.52),
    ("?csz", 0.56), ("Lkvxy", 0.60), ("$0123456789EFTabdeghnopqu{}", 0.64), ("PSY", 0.68), ("ABCKRVXZ", 0.72),
    ("HNU", 0.76), ("&DGOQ", 0.80), ("#+<=>^w~", 0.84), ("M", 0.92), ("%", 0.96), ("@Wm", 1.00),
)  # fmt: skip
_ADVANCE = {letter: width for letters, width in _CLASSES for letter in letters}


def text_width(text: str, size: float, mono: bool = False) -> float:
    """Estimated width in px of one line of ``text`` at font size ``size`` px.

    >>> text_width("ii", 10) < text_width("WW", 10), text_width("ab", 10, mono=True)
    (True, 12.1)
    """
    total = 0.0
    for letter in text:
        if ord(letter) < 0x250:
            total += _MONO if mono else _ADVANCE.get(letter, 0.9)
        elif not unicodedata.combining(letter):
            total += 1.4 if unicodedata.east_asian_width(letter) in "WF" else 1.03
    return total * size


def clip(text: str, limit: float, size: float, mono: bool = False) -> str:
    """``text``, cut with an ellipsis where it would be wider than ``limit`` px.

    >>> clip("remote_address", 60, 10), clip("rkey", 60, 10)
    ('remote_…', 'rkey')
    """
    if text_width(text, size, mono) <= limit:
        return text
    ellipsis = text_width("…", size, mono)
    kept = 0.0
    for count, letter in enumerate(text):
        kept += text_width(letter, size, mono)
        if kept + ellipsis > limit:
            return text[:count] + "…" if ellipsis <= limit else ""
    return text


def shrink(text: str, limit: float, size: float, least: float = 8, mono: bool = False) -> tuple[str, float]:
    """``text`` and the font size between ``least`` and ``size`` at which it fits ``limit`` px; cut if none
    does.

    >>> shrink("opcode", 100, 12), shrink("opcode", 40, 12)[1] < 12
    (('opcode', 12), True)
    """
    width = text_width(text, size, mono)
    if width <= limit:
        return text, size
    smaller = max(least, int(size * limit / width * 10) / 10)
    return clip(text, limit, smaller, mono), smaller


def wrap(text: str, limit: float, size: float, most: int = 99, mono: bool = False) -> list[str]:
    """``text`` broken into at most ``most`` lines of ``limit`` px: between words, inside one where it must.

    >>> wrap("one QP holds both", 70, 10)
    ['one QP holds', 'both']
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if text_width(candidate, size, mono) <= limit:
            line = candidate
            continue
        if line:
            lines.append(line)
        while text_width(word, size, mono) > limit and len(word) > 1:
            cut = max(
                1, next(i for i in range(1, len(word) + 1) if text_width(word[:i], size, mono) > limit) - 1
            )
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    lines.append(line)
    if len(lines) > most:
        lines[most - 1 :] = [clip(" ".join(lines[most - 1 :]), limit, size, mono)]
    return lines
