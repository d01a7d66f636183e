"""`decode`: any mlx5 structure from bytes; the doorbell kinds live here, WQEs and CQEs in their own files.

Leans on decode_wqe, decode_cqe and fields. Contents never make it raise: whatever is illegal stands in
`problems`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rdmakit.errors import BadArgument, DecodeError
from rdmakit.layout.constants import DS_BYTES, SEND_WQE_BB, Opcode
from rdmakit.layout.decode_cqe import decode_cqe
from rdmakit.layout.decode_wqe import decode_recv, decode_wqe
from rdmakit.layout.fields import Decoded, enum_name, segment_at

__all__ = ["KINDS", "DecodedCqDbrec", "DecodedDoorbell", "DecodedQpDbrec", "as_bytes", "decode", "decode_all"]

KINDS = ("wqe", "recv", "cqe", "doorbell", "dbrec", "cq_dbrec")
QP_TYPES = ("rc", "ud", "raw")

_DOORBELL = [("opmod", 0, 1), ("wqe_index", 1, 2), ("opcode", 3, 1), ("qpn", 4, 3), ("ds", 7, 1)]


@dataclass(frozen=True)
class DecodedDoorbell(Decoded):
    """A doorbell register value.

    `dialect` is "next" (opcode and ds 0: `wqe_index` is the next basic block's) or "last" (the first 8 bytes
    of the last posted WQE). `next_index` is the 16-bit index of the next basic block in either dialect.
    """

    kind = "doorbell"
    facts = ("dialect", "qpn", "wqe_index", "next_index", "opcode", "opcode_name", "ds")

    qpn: int
    wqe_index: int
    opcode: int
    ds: int

    @property
    def dialect(self) -> str:
        """Who writes so: "next" NVSHMEM, DeepEP, DOCA; "last" libmlx5, mori, rocSHMEM."""
        return "last" if self.opcode or self.ds else "next"

    @property
    def opcode_name(self) -> str:
        """Name of the last WQE's opcode; "" in the other dialect, which has none."""
        return enum_name(Opcode, self.opcode) if self.dialect == "last" else ""

    @property
    def next_index(self) -> int:
        """Index of the first basic block not yet handed to the device, mod 2**16."""
        return (self.wqe_index + -(-self.ds * DS_BYTES // SEND_WQE_BB)) & 0xFFFF

    @property
    def title(self) -> str:
        """One line: what this is."""
        return f"doorbell ({self.dialect} WQE's index) qpn {self.qpn:#x} next basic block {self.next_index}"


@dataclass(frozen=True)
class DecodedQpDbrec(Decoded):
    """A QP's doorbell record: `rcv` counts receive WQEs, `snd` is the next send basic block; 16 bits each."""

    kind = "dbrec"
    facts = ("rcv", "snd")

    rcv: int
    snd: int

    @property
    def title(self) -> str:
        """One line: what this is."""
        return f"QP doorbell record rcv {self.rcv} snd {self.snd}"


@dataclass(frozen=True)
class DecodedCqDbrec(Decoded):
    """A CQ's doorbell record: consumer index, and the arm request with its own index and sequence number."""

    kind = "cq_dbrec"
    facts = ("set_ci", "arm_sn", "solicited_only", "arm_ci")

    set_ci: int
    arm_sn: int
    solicited_only: bool
    arm_ci: int

    @property
    def title(self) -> str:
        """One line: what this is."""
        return f"CQ doorbell record ci {self.set_ci} arm ci {self.arm_ci} sn {self.arm_sn}"


def _doorbell(raw: bytes) -> DecodedDoorbell:
    segment = segment_at("doorbell", raw, 0, 8, _DOORBELL)
    opcode, ds = segment.number("opcode"), segment.number("ds")
    problems = []
    if ds & 0xC0:
        problems.append(f"reserved bits {ds & 0xC0:#x} set above ds, which has six")
    if opcode not in Opcode._value2member_map_:
        problems.append(f"opcode {opcode:#x} is none that mlx5 defines")
    if bool(opcode) > bool(ds & 0x3F):
        problems.append(
            "an opcode without ds: neither dialect, and it cannot say how many basic blocks to add"
        )
    if segment.number("qpn") == 0:
        problems.append("qpn 0: no send queue of a user has that number")
    return DecodedDoorbell(
        raw, (segment,), problems, segment.number("qpn"), segment.number("wqe_index"), opcode, ds & 0x3F
    )


def _qp_dbrec(raw: bytes) -> DecodedQpDbrec:
    segment = segment_at("dbrec", raw, 0, 8, [("rcv", 0, 4), ("snd", 4, 4)])
    rcv, snd = segment.number("rcv"), segment.number("snd")
    problems = [
        f"{name} {value:#x} has more than 16 bits"
        for name, value in (("rcv", rcv), ("snd", snd))
        if value > 0xFFFF
    ]
    return DecodedQpDbrec(raw, (segment,), problems, rcv, snd)


def _cq_dbrec(raw: bytes) -> DecodedCqDbrec:
    segment = segment_at("cq_dbrec", raw, 0, 8, [("set_ci", 0, 4), ("arm", 4, 4)])
    set_ci, arm = segment.number("set_ci"), segment.number("arm")
    problems = []
    if set_ci > 0xFFFFFF:
        problems.append(f"set_ci {set_ci:#x} has more than 24 bits")
    if arm & 0xCE000000:
        problems.append(f"arm has bits {arm & 0xCE000000:#x} set, it is sn[29:28] | cmd[24] | ci[23:0]")
    return DecodedCqDbrec(
        raw, (segment,), problems, set_ci, arm >> 28 & 3, bool(arm & 1 << 24), arm & 0xFFFFFF
    )


def as_bytes(buf: Any) -> bytes:
    """A copy of the bytes of anything with the buffer protocol: bytes, memoryview, NumPy array or record."""
    return bytes(buf) if isinstance(buf, (bytes, bytearray)) else memoryview(buf).tobytes()


def _guess(raw: bytes, qp_type: str) -> str:
    if len(raw) == 8:
        return "doorbell"
    if len(raw) not in (64, 128):
        return "wqe"
    as_wqe, as_cqe = decode_wqe(raw, qp_type), decode_cqe(raw)
    # A CQE's first words are zero or payload: as a WQE they show ds 0, qpn 0 or an unknown opcode.
    wqe_faults = len(as_wqe.problems) + (as_wqe.qpn == 0)
    cqe_faults = len(as_cqe.problems) + (as_cqe.qpn == 0)
    return "cqe" if cqe_faults < wqe_faults else "wqe"


def decode(buf: Any, kind: str | None = None, *, qp_type: str = "rc") -> Decoded:
    """Decode one structure from a bytes-like `buf`.

    `kind` is one of `KINDS`; without it the size decides: 8 bytes a doorbell register (say "dbrec" for a
    record), 64 or 128 bytes a WQE or a CQE, whichever has fewer problems, any other multiple of 16 a WQE.
    `qp_type` ("rc", "ud", "raw") says which segments a SEND has. Raises DecodeError for an impossible size,
    BadArgument for an unknown kind; never anything because of contents.

    >>> from rdmakit.layout import encode
    >>> d = decode(encode.write(index=5, qpn=0x123, raddr=0x1000, rkey=7, sges=encode.Sge(0x2000, 64, 9)))
    >>> d.title, [segment.name for segment in d.segments], d.problems
    ('WQE RDMA_WRITE index 5 qpn 0x123 ds 3 (1 WQEBB, 64 B)', ['ctrl', 'raddr', 'data'], [])
    >>> decode(bytes.fromhex("00000800 00012300")).next_index
    8
    """
    if qp_type not in QP_TYPES:
        raise BadArgument("unknown QP type", value=qp_type, rule="one of " + ", ".join(QP_TYPES),
                          remedy="leave it out for RC")
    raw = as_bytes(buf)
    kind = kind or _guess(raw, qp_type)
    if kind not in KINDS:
        raise BadArgument("unknown kind", value=kind, rule="one of " + ", ".join(KINDS),
                          remedy="leave it out, and the bytes decide")
    sizes = {
        "wqe": len(raw) >= DS_BYTES and len(raw) % DS_BYTES == 0,
        "cqe": len(raw) in (64, 128),
        "recv": len(raw) >= DS_BYTES and len(raw) % DS_BYTES == 0,
    }
    if not sizes.get(kind, len(raw) == 8):
        rule = {"wqe": "a multiple of 16 bytes", "recv": "a multiple of 16 bytes", "cqe": "64 or 128 bytes"}
        raise DecodeError(
            f"no {kind} has this size",
            value=len(raw),
            rule=rule.get(kind, "8 bytes"),
            remedy="pass whole structures, or name another kind",
        )
    if kind == "wqe":
        return decode_wqe(raw, qp_type)
    others = {
        "recv": decode_recv,
        "cqe": decode_cqe,
        "doorbell": _doorbell,
        "dbrec": _qp_dbrec,
        "cq_dbrec": _cq_dbrec,
    }
    return others[kind](raw)


def decode_all(buf: Any, kind: str = "wqe", *, qp_type: str = "rc") -> list[Decoded]:
    """Decode the WQEs of a slice of an SQ, or the 64-byte CQEs of a slice of a CQ, one after the other.

    >>> from rdmakit.layout import encode
    >>> two = encode.nop(index=0, qpn=1) + encode.nop(index=1, qpn=1)
    >>> [d.index for d in decode_all(two)]
    [0, 1]
    """
    raw = as_bytes(buf)
    if kind not in ("wqe", "cqe"):
        raise BadArgument("no ring of this kind", value=kind, rule="wqe or cqe",
                          remedy="decode one structure with decode(raw, kind)")
    if len(raw) % SEND_WQE_BB:
        raise DecodeError("not whole entries", value=len(raw), rule=f"a multiple of {SEND_WQE_BB} bytes",
                          remedy="cut the slice at whole basic blocks")
    found: list[Decoded] = []
    at = 0
    while at < len(raw):
        size = SEND_WQE_BB
        if kind == "wqe":
            size = min(decode_wqe(raw[at:], qp_type).size, len(raw) - at)
        found.append(decode(raw[at : at + size], kind, qp_type=qp_type))
        at += size
    return found
