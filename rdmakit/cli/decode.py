"""`rdmakit decode HEX`: explain the bytes of a WQE, a CQE, a doorbell record or a doorbell register value.

Leans on layout. Takes bytes as people have them: from a dmesg dump, libmlx5's "got completion with error"
words, a debugger, `xxd -p`. Exit status 0 when nothing is illegal, 1 when `problems` lists something, 2 for
bad input.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from rdmakit.errors import BadArgument
from rdmakit.layout import KINDS, Decoded, decode, hexdump

__all__ = ["add_parser", "main", "parse_hex", "run"]

# A line of print_hex_dump, xxd or `hexdump`: an offset, the bytes, perhaps "|" and what they mean
_DUMP_LINE = re.compile(r"^\s*(?:0[xX])?[0-9a-fA-F]{4,16}:\s([^|\n]*).*$", re.MULTILINE)
_SEPARATORS = re.compile(r"[\s:,_]+")


def parse_hex(text: str) -> bytes:
    """Bytes from hex digits with any spaces, colons, commas, newlines and 0x prefixes between them.

    Lines of a hex dump lose their offset and what stands right of a "|". Each group must have whole bytes:
    "123" is an error, not 0x0123. Raises BadArgument.

    >>> parse_hex("0x00000508 00:01:23:03").hex()
    '0000050800012303'
    >>> parse_hex("00000000: 00 00 05 08\\n00000010: 00 01").hex()
    '000005080001'
    """
    data = bytearray()
    for group in _SEPARATORS.split(_DUMP_LINE.sub(r"\1", text)):
        digits = group[2:] if group[:2] in ("0x", "0X") else group
        try:
            data += bytes.fromhex(digits)
        except ValueError:
            raise BadArgument(
                "not hex", value=repr(group), rule="whole bytes, two hex digits each", remedy="0f, not f"
            ) from None
    if not data:
        raise BadArgument(
            "no hex digits given",
            value=repr(text),
            rule="two hex digits for each byte",
            remedy='for example: rdmakit decode "00000508 00012303 …"',
        )
    return bytes(data)


def _decode(args: argparse.Namespace) -> Decoded:
    text = sys.stdin.read() if args.hex == ["-"] else " ".join(args.hex)
    return decode(parse_hex(text), args.kind, qp_type=args.qp_type)


def _result(args: argparse.Namespace, decoded: Decoded) -> dict[str, Any]:
    facts = {name: getattr(decoded, name) for name in decoded.facts}
    numbers = {name: int(value) for name, value in facts.items() if isinstance(value, int)}
    return {
        "ok": not decoded.problems,
        "figures": {"bytes": len(decoded.raw), "problems": len(decoded.problems), **numbers},
        "config": {"kind": decoded.kind, "kind_given": args.kind, "qp_type": args.qp_type},
        "decoded": decoded.to_dict(),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Decode what `args.hex` says; returns the JSON object: ok, figures (name → number), config, decoded.

    `args` has `hex` (a list of words, or ["-"] for stdin), `kind` (or None) and `qp_type`. Prints nothing.
    Raises BadArgument for bad hex, DecodeError for a size that fits no structure.
    """
    return _result(args, _decode(args))


def main(args: argparse.Namespace) -> int:
    """Print the annotated hex dump, or with `args.json` one JSON object; returns the exit status. Raises as `run`."""
    decoded = _decode(args)
    print(json.dumps(_result(args, decoded)) if args.json else hexdump(decoded))
    return 1 if decoded.problems else 0


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `decode` to an argparse subparsers object; sets `func` to `main`, which returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "decode",
        help="explain the bytes of a WQE, CQE or doorbell",
        description="Annotated hex dump of an mlx5 structure. Exit status 1 when something in it is illegal.",
    )
    parser.add_argument(
        "hex", nargs="+", metavar="HEX", help='hex bytes, spaces and colons allowed; "-": stdin'
    )
    parser.add_argument("--kind", choices=KINDS, help="what the bytes are (default: guessed from their size)")
    parser.add_argument(
        "--qp-type", choices=("rc", "ud", "raw"), default="rc", help="decides a SEND's segments"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=main)
    return parser
