"""Completion entries from bytes: good, in error, with inline data; and what is wrong with them.

Leans on constants, cqe and fields. Source: rdma-core `providers/mlx5/cq.c` (mlx5_parse_cqe,
mlx5_handle_error_cqe).
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.layout.constants import CqeFormat, CqeOpcode, Opcode, Syndrome, WcStatus, wc_status
from rdmakit.layout.cqe import CQE64, ERR_CQE
from rdmakit.layout.fields import Decoded, Segment, enum_name, segment_at, spec_of

__all__ = ["DecodedCqe", "decode_cqe"]

_HEAD = spec_of(
    CQE64, "wqe_id", "ml_path", "slid", "flags_rqpn", "hds_ip_ext", "l4_hdr_type_etc", "vlan_info"
)
_TAIL = [
    ("send_opcode", 56, 1),
    ("qpn", 57, 3),
    ("wqe_counter", 60, 2),
    ("signature", 62, 1),
    ("op_own", 63, 1),
]
_GOOD = [
    *spec_of(CQE64, "srqn_uidx", "imm_inval_pkey", "app", "app_op", "app_info", "byte_cnt", "timestamp"),
    *_TAIL,
]
_ERROR = [*spec_of(ERR_CQE, "srqn", "hw_err_synd", "hw_synd_type", "vendor_err_synd", "syndrome"), *_TAIL]
_ROOM = {CqeFormat.INLINE_SCATTER_32: 32, CqeFormat.INLINE_SCATTER_64: 64}


@dataclass(frozen=True)
class DecodedCqe(Decoded):
    """A completion. `opcode`, `send_opcode` and `syndrome` stay plain numbers when they name nothing.

    `wqe_counter` is the 16-bit index of the completed WQE's first basic block (requester) or of the receive
    WQE (responder). The error fields are 0 on a good completion, `byte_cnt`, `imm`, `src_qp` on one in error.
    """

    kind = "cqe"
    facts = (
        "opcode_name",
        "opcode",
        "owner",
        "format",
        "solicited",
        "qpn",
        "wqe_counter",
        "send_opcode",
        "send_opcode_name",
        "is_error",
        "syndrome",
        "syndrome_name",
        "wc_status",
        "vendor_err",
        "byte_cnt",
        "imm",
        "src_qp",
        "srqn",
        "timestamp",
        "inline_data",
    )

    op_own: int
    qpn: int
    wqe_counter: int
    send_opcode: int
    srqn: int
    syndrome: int = 0
    vendor_err: int = 0
    hw_err_synd: int = 0
    hw_synd_type: int = 0
    byte_cnt: int = 0
    imm: int = 0
    src_qp: int = 0
    timestamp: int = 0
    inline_data: bytes = b""

    @property
    def opcode(self) -> int:
        """op_own bits 7:4."""
        return self.op_own >> 4

    @property
    def opcode_name(self) -> str:
        """Name of the CQE's opcode, or its number in hex."""
        return enum_name(CqeOpcode, self.opcode)

    @property
    def send_opcode_name(self) -> str:
        """Name of the completed send WQE's opcode, or its number in hex."""
        return enum_name(Opcode, self.send_opcode)

    @property
    def format(self) -> CqeFormat:
        """op_own bits 3:2: inline scatter or compression."""
        return CqeFormat(self.op_own >> 2 & 3)

    @property
    def solicited(self) -> bool:
        """op_own bit 1."""
        return bool(self.op_own & 2)

    @property
    def owner(self) -> int:
        """op_own bit 0; software's when equal to the lap's parity, see `cqe_is_software_owned`."""
        return self.op_own & 1

    @property
    def is_error(self) -> bool:
        """Whether this is a requester or responder error."""
        return self.opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR)

    @property
    def syndrome_name(self) -> str:
        """Name of the syndrome ("" on a good completion), or its number in hex."""
        return enum_name(Syndrome, self.syndrome) if self.is_error else ""

    @property
    def wc_status(self) -> WcStatus:
        """What `ibv_poll_cq` would say."""
        return wc_status(self.syndrome) if self.is_error else WcStatus.SUCCESS

    @property
    def title(self) -> str:
        """One line: what this is."""
        what = f"{self.syndrome_name} ({self.wc_status.name})" if self.is_error else f"{self.byte_cnt} B"
        return f"CQE {self.opcode_name} qpn {self.qpn:#x} wqe_counter {self.wqe_counter} {what}"


def _error(raw: bytes, base: int, problems: list[str]) -> DecodedCqe:
    error = segment_at("error", raw, base, 64, _shifted(_ERROR, 0))
    number = error.number
    if number("syndrome") not in Syndrome._value2member_map_:
        problems.append(
            f"syndrome {number('syndrome'):#x} is none that mlx5 defines: libmlx5 says GENERAL_ERR"
        )
    if number("op_own") & 0x0C:
        problems.append("inline scatter or compression bits on a completion in error")
    return DecodedCqe(
        raw,
        (error,),
        problems,
        number("op_own"),
        number("qpn"),
        number("wqe_counter"),
        number("send_opcode"),
        number("srqn") & 0xFFFFFF,
        number("syndrome"),
        number("vendor_err_synd"),
        number("hw_err_synd"),
        number("hw_synd_type"),
    )


def _good(raw: bytes, base: int, problems: list[str]) -> DecodedCqe:
    form = CqeFormat(raw[base + 63] >> 2 & 3)
    opcode = raw[base + 63] >> 4
    tail = segment_at("cqe", raw, base + 32, 32, _shifted(_GOOD, 32))
    count, src_qp, inline = tail.number("byte_cnt"), 0, b""
    segments: list[Segment] = []
    if form in _ROOM:
        room = _ROOM[form]
        if count > room:
            problems.append(f"byte_cnt {count}, but {form.name} holds {room} bytes")
        start = base if room == 32 else base - 64
        if start < 0:
            problems.append(
                "INLINE_SCATTER_64 puts the data in the 64 bytes before: decode the 128-byte entry"
            )
        else:
            inline = raw[start : start + min(count, room)]
            segments.append(segment_at("inline", raw, start, room, [("data", 0, room)]))
    if form is not CqeFormat.INLINE_SCATTER_32:
        head = segment_at("head", raw, base, 32, _HEAD)
        segments.append(head)
        src_qp = head.number("flags_rqpn") & 0xFFFFFF
    if form is CqeFormat.COMPRESSED:
        problems.append("compressed session: mini-CQEs follow, which are not decoded here")
    if opcode == CqeOpcode.REQ and tail.number("send_opcode") not in Opcode._value2member_map_:
        problems.append(f"send opcode {tail.number('send_opcode'):#x} is none that mlx5 defines")
    return DecodedCqe(
        raw,
        (*segments, tail),
        problems,
        raw[base + 63],
        tail.number("qpn"),
        tail.number("wqe_counter"),
        tail.number("send_opcode"),
        tail.number("srqn_uidx") & 0xFFFFFF,
        byte_cnt=count,
        imm=tail.number("imm_inval_pkey"),
        src_qp=src_qp,
        timestamp=tail.number("timestamp"),
        inline_data=inline,
    )


def _shifted(spec: list[tuple[str, int, int]], by: int) -> list[tuple[str, int, int]]:
    return [(name, offset - by, size) for name, offset, size in spec]


def decode_cqe(raw: bytes) -> DecodedCqe:
    """The CQE in `raw`: 64 bytes, or 128, whose second half is the CQE64."""
    base = len(raw) - 64
    opcode = raw[-1] >> 4
    problems: list[str] = []
    if opcode == CqeOpcode.INVALID:
        problems.append("opcode INVALID: the device has not written this entry yet")
    elif opcode not in CqeOpcode._value2member_map_:
        problems.append(f"CQE opcode {opcode} is none that mlx5 defines")
    return (_error if opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR) else _good)(raw, base, problems)
