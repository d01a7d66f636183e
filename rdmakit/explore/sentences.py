"""One step in words: values decoded as what they mean at that place, an opcode, an index, a syndrome.

Leans on trace, names and layout. Sources of the formats: those of rdmakit.layout.
"""

from __future__ import annotations

import re
from typing import Any

from rdmakit.explore.names import SCOPES, Names
from rdmakit.explore.trace import FENCE, LOAD, NOTE, STORE, UPDATE, Step, Trace
from rdmakit.layout import decode
from rdmakit.layout.constants import CqeOpcode, Opcode, Syndrome

__all__ = ["INTERNAL", "number", "old_news", "sentence"]

# What a kernel keeps for itself: told only when two agents meet there.
INTERNAL = (
    "handle of", "report of", "sink of atomics", "SqState", "state of a", "next ticket", "doorbell record of CQ",
)  # fmt: skip
_ORDERS = ("", "relaxed", "acquire", "release", "acq_rel")
_BLOCK = 64  # a WQE basic block, and a CQE
_HEX = re.compile(r" \+ 0x([0-9a-f]+)$")


def number(value: int | None) -> str:
    """A number as people read it; "…" where the recording does not tell.

    >>> number(12), number(0xdeadbeef), number(None)
    ('12', '0xdeadbeef', '…')
    """
    if value is None:
        return "…"
    return str(value) if value < 1 << 24 else f"{value:#x}"


def _opcode(value: int) -> str:
    return Opcode(value).name if value in Opcode._value2member_map_ else f"opcode {value:#x}"


def wqe_title(first_bytes: int) -> str:
    """ "WQE 3: RDMA_WRITE" from the first 8 bytes of one.

    >>> wqe_title(0x385490008000000)
    'WQE 0: RDMA_WRITE'
    """
    head = int(first_bytes).to_bytes(8, "little")
    return f"WQE {int.from_bytes(head[1:3], 'big')}: {_opcode(head[3])}"


def _cqe_at(trace: Trace, step: Step) -> str:
    """What a CQE says that a NIC has written, as long as it is still there."""
    if step["bytes"] < _BLOCK or not trace.last_write(step):
        return ""
    cqe: Any = decode(trace.memory(step["address"] + step["bytes"] - _BLOCK, _BLOCK), "cqe")
    if cqe.is_error:
        fault = Syndrome(cqe.syndrome).name if cqe.syndrome in Syndrome._value2member_map_ else hex(cqe.syndrome)
        return f": WQE {cqe.wqe_counter} failed, {fault}"
    if cqe.opcode == CqeOpcode.REQ:
        return f": WQE {cqe.wqe_counter} is complete"
    return f": {cqe.opcode_name}"


def _mbarrier(word: int) -> str:
    """The CPU runner's word of an mbarrier (MbarrierWord, cpu.cuh).

    >>> _mbarrier(0x2000000000202)
    'phase 0, 257 arrivals and 256 bytes due'
    """
    signed = word - (1 << 64) if word >> 63 else word
    due = word >> 1 & 0xFFFFF
    return f"phase {word & 1}, {due} arrival{'s' * (due != 1)} and {signed >> 41} bytes due"


def _meaning(name: str, step: Step, value: int | None, names: Names) -> tuple[str, str]:
    """(what is there, what its value means) for words whose format is known; ("", "") for others."""
    if value is None:
        return "", ""
    if step["address"] in names.mbarriers and step["bytes"] == 8:
        return "", _mbarrier(value)
    if name.startswith("doorbell record") and name.endswith("[1]"):
        index = int.from_bytes(value.to_bytes(8, "little")[:4], "big") & 0xFFFF
        return "", f"posted up to {index}"
    if name.startswith("ring of CQ") and step["bytes"] == 4:
        tail = value.to_bytes(8, "little")[:4]
        opcode = tail[3] >> 4
        if opcode == CqeOpcode.INVALID:
            return "a CQE", "nothing there yet"
        fate = "an error of" if opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR) else "completion of"
        return "a CQE", f"{fate} WQE {int.from_bytes(tail[:2], 'big')}"
    return "", ""


def old_news(trace: Trace, step: Step) -> str:
    """ "old: posted up to 2 has stood there since step 97 of rank 0 put" of a stale load."""
    newest = trace.newest_before(step)
    if newest is None:
        return "old"
    by = f"step {newest['number']} by {trace.names.agent(newest['agent'])}"
    if step["bytes"] > 8:
        some = f"{step['newer']} word{'s' * (step['newer'] != 1)}"
        return f"with old bytes in {some}, for all that was written up to {by}"
    value = trace.value_at(newest, step["address"], step["bytes"])
    said = _meaning(trace.names.raw(step["address"]), step, value, trace.names)[1] or number(value)
    return f"old: {said} was written in {by}"


def _note(step: Step, trace: Trace) -> str:
    qpn, index, opcode = step["detail"]
    note, names = step["note"], trace.names
    if note == "takes the doorbell":
        return "hears the doorbell"
    if note in ("sends", "executes", "is acknowledged") and qpn:
        title = f"WQE {index & 0xFFFF}: {_opcode(opcode & 0xFF)}"
        return f"{title} is acknowledged" if note == "is acknowledged" else f"{note} {title}"
    return str(note) + (f" [{names.place(step)}]" if step["file"] else "")


def sentence(step: Step, trace: Trace) -> str:
    """One step of a schedule in words; "" for what tells nobody anything."""
    names = trace.names
    if step["kind"] == NOTE:
        return _note(step, trace)
    at, note = names.place(step), step["note"]
    where = f" [{at}]" if at else ""
    if step["kind"] == FENCE and note == "proxy":
        return f"fence.proxy.async{where}"
    if step["kind"] == FENCE:
        return f"fence.{SCOPES[step['scope']]}{where}"
    raw = names.raw(step["address"])
    if not raw:
        return ""
    name = names.address(step["address"])
    if note == "fetches a WQE":
        return f"fetches {wqe_title(step['value'])}"
    if note == "writes a CQE":
        return f"writes a CQE{_cqe_at(trace, step)}"
    if note == "lands an answer":
        return "lands the old value" + ("" if raw.startswith("sink of atomics") else f" in {name}")
    if note == "places payload":
        return f"places payload in {names.span(step['address'], step['bytes'])}"
    if note in ("reads payload", "reads for a READ", "fetches a receive WQE"):
        return f"{note} {names.span(step['address'], step['bytes'])}"
    if names.is_copy(step["agent"]) and step["kind"] != UPDATE:
        return f"{note} {names.span(step['address'], step['bytes'])}{where}"
    if note == "executes an atomic":
        return f"adds: {name} is now {number(step['value'])}"
    if step["kind"] == STORE and raw.startswith("send ring"):
        offset = _HEX.search(raw)
        first = offset is None or int(offset[1], 16) % _BLOCK == 0
        return f"writes {wqe_title(step['value'])}{where}" if first else f"writes more of a WQE{where}"
    ordered = step["order"] and not names.is_nic(step["agent"])
    how = f" ({_ORDERS[step['order']]}.{SCOPES[step['scope']]})" if ordered else ""
    if step["kind"] == UPDATE:
        return f"updates {name}{_became(trace, step)}{how}{where}"
    what, means = _meaning(raw, step, step["value"], names)
    verb = "reads" if step["kind"] == LOAD else "writes"
    link = ":" if means else " ="
    return f"{verb} {what or name}{link} {means or number(step['value'])}{how}{where}"


def _became(trace: Trace, step: Step) -> str:
    value = trace.value_at(step, step["address"], step["bytes"])
    means = _meaning(trace.names.raw(step["address"]), step, value, trace.names)[1]
    return "" if value is None else f", now {means or number(value)}"
