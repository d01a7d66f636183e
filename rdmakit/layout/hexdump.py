"""Hex dumps with field names: the left side as the kernel prints it, the right side what the bytes mean.

Leans on decode. The first 57 columns are `print_hex_dump(DUMP_PREFIX_OFFSET, 16, 1)` to the letter, so
`cut -c1-57` diffs with an `mlx5_core` "WQE DUMP" or an "Error cqe" in dmesg.
"""

from __future__ import annotations

from typing import Any

from rdmakit.layout.decode import decode
from rdmakit.layout.fields import Decoded

__all__ = ["hexdump"]

_LINE = 16


def _meaning(decoded: Decoded, start: int) -> str:
    words = []
    for segment in decoded.segments:
        entries = [f for f in segment.fields if start <= f.offset < start + _LINE and f.size]
        long_ones = [f for f in segment.fields if f.offset < start < f.offset + f.size]
        if start <= segment.offset < start + _LINE:
            words.append(f"{segment.name}:")
        elif long_ones:
            words.append(f"({segment.name} {long_ones[0].name})")
        elif entries:
            words.append(f"({segment.name})")
        # Long byte strings stand on the left already.
        words += [f"{f.name}={f.text}" if f.size <= 8 else f"{f.name}[{f.size}]" for f in entries]
    return " ".join(words)


def hexdump(buf: Any, kind: str | None = None, *, qp_type: str = "rc") -> str:
    """Plain text: a title, a line for each 16 bytes, one for each problem. Arguments and errors as in
    `decode`.

    `buf` may also be an object that `decode` returned. No trailing newline.

    >>> from rdmakit.layout import encode
    >>> amo = encode.fetch_add(index=5, qpn=0x12, raddr=0x1008, rkey=7, add=1, sge=encode.Sge(0x20, 8, 9))
    >>> print(hexdump(amo))
    WQE ATOMIC_FA index 5 qpn 0x12 ds 4 (1 WQEBB, 8 B)
    00000000: 00 00 05 12 00 00 12 04 00 00 00 08 00 00 00 00 | ctrl: opmod=0x0 wqe_index=5 opcode=ATOMIC_FA \
qpn=0x12 ds=4 signature=0x0 dci_stream_channel_id=0x0 fm_ce_se=CQ_UPDATE imm=0x0
    00000010: 00 00 00 00 00 00 10 08 00 00 00 07 00 00 00 00 | raddr: raddr=0x1008 rkey=0x7 reserved=0x0
    00000020: 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 00 | atomic: swap_add=0x1 compare=0x0
    00000030: 00 00 00 08 00 00 00 09 00 00 00 00 00 00 00 20 | data: byte_count=8 lkey=0x9 addr=0x20
    """
    decoded = buf if isinstance(buf, Decoded) else decode(buf, kind, qp_type=qp_type)
    lines = [decoded.title]
    for start in range(0, len(decoded.raw), _LINE):
        chunk = decoded.raw[start : start + _LINE].hex(" ")
        meaning = _meaning(decoded, start)
        lines.append(
            f"{start:08x}: {chunk:<47} | {meaning}".rstrip(" |")
            if not meaning
            else f"{start:08x}: {chunk:<47} | {meaning}"
        )
    lines += [f"problem: {problem}" for problem in decoded.problems]
    return "\n".join(lines)
