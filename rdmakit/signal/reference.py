"""The truth in NumPy about what a transfer says of itself: fingerprints, stamps, checksums, whole slots.

Leans on NumPy and signal's own data. Written from the definitions, not from `cuda/rdmakit/lock_stamp.cuh`, which tests
hold against it: the checksum here goes by bytes and a table, there by words and bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.signal.abi import LOCK_HEADER
from rdmakit.signal.strategies import HEADER_BYTES, LINE_BYTES, LINE_DATA_BYTES, Strategy, eager_lines

__all__ = [
    "Bytes",
    "crc32c",
    "eager_slot",
    "fingerprint",
    "header",
    "immediate",
    "line_fingerprint",
    "payload_crc",
    "signal_fingerprint",
    "slot",
    "stamp",
    "whole_slot",
    "widen",
]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1
_BLOCK = 128


def _table() -> list[int]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        found.append(crc)
    return found


_CRC_TABLE = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC32C, RFC 3720 appendix B.4.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc ^= _M32
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ _M32


def payload_crc(payload: bytes) -> int:
    """Sum, modulo 2**32, of the CRC32C of each 128-byte block with its number, 8 bytes, in front.

    The end is padded with zeros to 8 bytes.
    """
    padded = payload + bytes(-len(payload) % 8)
    blocks = [padded[begin : begin + _BLOCK] for begin in range(0, len(padded), _BLOCK)]
    return sum(crc32c(number.to_bytes(8, "little") + block) for number, block in enumerate(blocks)) & _M32


def _mix64(v: int) -> int:
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9 & _M64
    v = (v ^ v >> 27) * 0x94D049BB133111EB & _M64
    return v ^ v >> 31


def fingerprint(qpn: int, epoch: int, ticket: int, length: int, crc: int = 0) -> int:
    """The 32 bits that bind a transfer to its sender's queue pair, epoch, ticket, length and checksum."""
    sender = _mix64((epoch << 32 | qpn) + 0x9E3779B97F4A7C15 & _M64)
    return _mix64(_mix64(sender ^ ticket) ^ (crc << 32 | length)) >> 32


def signal_fingerprint(qpn: int, epoch: int, ticket: int) -> int:
    """That of a flag or an immediate, which say who and which, not how long."""
    return fingerprint(qpn, epoch, ticket, _M32, 0)


def line_fingerprint(qpn: int, epoch: int, ticket: int, length: int, line: int, crc: int = 0) -> int:
    """That of one line of an eager slot; `crc` is the CRC32C of its 120 bytes, 0 without checksums."""
    return fingerprint(qpn, epoch, ticket, length, crc + line * 0x9E3779B1 & _M32)


def stamp(ticket: int, print_: int) -> int:
    """A flag or a stamp as a 64-bit word."""
    return print_ << 32 | ticket & _M32


def immediate(qpn: int, epoch: int, ticket: int) -> int:
    """Low 16 bits of the ticket, high 16 bits of the fingerprint above them."""
    return signal_fingerprint(qpn, epoch, ticket) >> 16 << 16 | ticket & 0xFFFF


def widen(low: int, bits: int, nearest: int) -> int:
    """The number with these low bits that is nearest to `nearest`.

    >>> widen(2, 16, 0xFFFF), widen(0xFFFE, 16, 0x10001)
    (65538, 65534)
    """
    distance = (low - nearest) & ((1 << bits) - 1)
    return nearest + distance - (distance >> bits - 1 << bits)


# ---- slots as they lie in memory
def header(qpn: int, epoch: int, ticket: int, length: int, crc: int = 0) -> bytes:
    """The 32 bytes in front of the payload."""
    found = np.zeros((), LOCK_HEADER)
    values = {"ticket": ticket, "length": length, "epoch": epoch, "crc": crc, "qpn": qpn}
    values["fingerprint"] = fingerprint(qpn, epoch, ticket, length, crc)
    for name, value in values.items():
        found[name] = value
    return found.tobytes()


def whole_slot(payload: bytes, qpn: int, epoch: int, ticket: int, crc: bool = False) -> bytes:
    """Header and payload in one piece: every strategy but eager."""
    return header(qpn, epoch, ticket, len(payload), payload_crc(payload) if crc else 0) + payload


def eager_slot(payload: bytes, qpn: int, epoch: int, ticket: int, crc: bool = False) -> bytes:
    """Lines of 120 bytes of header and payload, the last padded with zeros, each with its stamp."""
    data = header(qpn, epoch, ticket, len(payload)) + payload
    count = eager_lines(len(payload))
    data += bytes(count * LINE_DATA_BYTES - len(data))
    lines = []
    for number in range(count):
        part = data[number * LINE_DATA_BYTES : (number + 1) * LINE_DATA_BYTES]
        mark = line_fingerprint(qpn, epoch, ticket, len(payload), number, crc32c(part) if crc else 0)
        lines.append(part + stamp(ticket, mark).to_bytes(8, "little"))
    assert all(len(line) == LINE_BYTES for line in lines) and len(data) >= HEADER_BYTES
    return b"".join(lines)


def slot(strategy: Strategy, payload: bytes, qpn: int, epoch: int, ticket: int, crc: bool = False) -> bytes:
    """What a transfer puts into its slot."""
    build = eager_slot if strategy is Strategy.EAGER else whole_slot
    return build(payload, qpn, epoch, ticket, crc)
