"""Every error that rdmakit raises on purpose: what happened, the offending value, the rule and the remedy.

Leans on nothing, so that each layer can raise these. All derive from `RdmakitError`; where Python has a
built-in for the same mistake the class derives from that too, so `except ValueError` keeps working.

>>> try:
...     raise BadArgument("qpn does not fit", value=1 << 24, rule="24 bits (mlx5 PRM, ctrl segment)",
...                       remedy="pass qp.qpn")
... except ValueError as error:
...     print(error)
qpn does not fit (value 16777216)
rule: 24 bits (mlx5 PRM, ctrl segment); remedy: pass qp.qpn
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BadArgument",
    "BadKey",
    "BadState",
    "CompileError",
    "CompletionError",
    "CorruptFile",
    "DecodeError",
    "DeviceFault",
    "ForeignObject",
    "HangError",
    "LaunchError",
    "NotAvailable",
    "ObjectBusy",
    "OutOfMemory",
    "PeerMismatch",
    "QueueFull",
    "RankDied",
    "RankMissing",
    "RdmakitError",
    "SequenceError",
    "UnknownDevice",
]


class RdmakitError(Exception):
    """Base of all rdmakit errors.

    `what` is one sentence without a full stop. `value` is the offending value, `rule` what it broke (with its
    source) and `remedy` what to do; any further keyword is a fact (rank, qpn, index, expected, seen …) that
    the message lists in the order given and that `facts` keeps as a dict. Parts that were not given are None.

    >>> error = BadState("QP is not ready to send", rule="post_send needs RTS", qpn=0x123, seen="INIT")
    >>> error.facts["qpn"], error.rule, error.remedy
    (291, 'post_send needs RTS', None)
    >>> print(error)
    QP is not ready to send (qpn 291, seen INIT)
    rule: post_send needs RTS
    """

    def __init__(
        self,
        what: str,
        *,
        value: Any = None,
        rule: str | None = None,
        remedy: str | None = None,
        **facts: Any,
    ) -> None:
        # Exception.args holds `what` alone: pickling re-creates the error from args, then restores __dict__.
        super().__init__(what)
        self.what = what
        self.value = value
        self.rule = rule
        self.remedy = remedy
        self.facts: dict[str, Any] = facts

    def __str__(self) -> str:
        facts = {} if self.value is None else {"value": self.value}
        facts.update(self.facts)
        listed = ", ".join(f"{name} {value}" for name, value in facts.items())
        first = f"{self.what} ({listed})" if listed else self.what
        second = "; ".join(
            f"{name}: {part}" for name, part in (("rule", self.rule), ("remedy", self.remedy)) if part
        )
        return f"{first}\n{second}" if second else first


class BadArgument(RdmakitError, ValueError):
    """An argument that no state of the world would make right."""


class BadState(RdmakitError, RuntimeError):
    """The call is right, but not now: a QP in the wrong state, an object already closed."""


class QueueFull(RdmakitError, RuntimeError):
    """No room in a send, receive or completion queue."""


class BadKey(RdmakitError, KeyError):
    """An lkey, rkey or handle that names nothing, or a memory region that does not allow the access."""

    __str__ = RdmakitError.__str__  # KeyError would print repr(what)


class ObjectBusy(RdmakitError, RuntimeError):
    """Destroying something that others still use (ibv_dealloc_pd and friends answer EBUSY)."""


class OutOfMemory(RdmakitError, MemoryError):
    """What was to be made does not fit: the device's memory or numbers, or the limit of locked memory (ENOMEM)."""


class ForeignObject(RdmakitError, ValueError):
    """An object of another context: a PD, CQ or MR of device A given to a QP of device B."""


class UnknownDevice(RdmakitError, LookupError):
    """No RDMA device, GPU or backend of that name."""


class NotAvailable(RdmakitError, ImportError):
    """A library, package or capability that this machine lacks; `remedy` says how to get it."""


class CorruptFile(RdmakitError, ValueError):
    """A file that is not what it says it is: bad magic, version or checksum."""


class DecodeError(RdmakitError, ValueError):
    """Bytes of a size that cannot be right. Illegal contents never raise: see `layout.Decoded.problems`."""


class CompileError(RdmakitError, RuntimeError):
    """Device code that did not compile. `log` is the compiler's whole output."""

    def __init__(self, what: str, *, log: str = "", **parts: Any) -> None:
        super().__init__(what, **parts)
        self.log = log

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.log}" if self.log else super().__str__()


class LaunchError(RdmakitError, RuntimeError):
    """A kernel that could not start: bad shape, too much shared memory, layout version mismatch."""


class HangError(RdmakitError, TimeoutError):
    """A wait that nothing can end, or that ran out of time. `report` says who waits for what, and where."""

    def __init__(self, what: str, *, report: Any = None, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.report = report

    def __str__(self) -> str:
        return super().__str__() if self.report is None else f"{super().__str__()}\n{self.report}"


class RankDied(HangError):
    """A rank's kernels have stopped for good, and the run could not end without them. `ranks` are those that died.

    The survivors have given up what they waited for: `report` says what that was.
    """

    def __init__(self, what: str, *, ranks: tuple[int, ...] = (), **parts: Any) -> None:
        super().__init__(what, **({"ranks": ", ".join(map(str, ranks))} if ranks else {}), **parts)
        self.ranks = ranks


class RankMissing(HangError):
    """A rank that others waited for, and that did not come in time. `ranks` are those that are missing."""

    def __init__(self, what: str, *, ranks: tuple[int, ...] = (), **parts: Any) -> None:
        super().__init__(what, **parts)
        self.ranks = ranks


class PeerMismatch(RdmakitError, ValueError):
    """What two ranks say does not fit together: how many they are, queue pairs, MTU, GIDs, link layers."""


class DeviceFault(RdmakitError, RuntimeError):
    """The device, or the memory under it, failed while running: a trap, an illegal address, a dead CQ."""


class CompletionError(RdmakitError, RuntimeError):
    """A work request that completed in error.

    `syndrome` is the CQE's byte 55 (mlx5), `wc_status` the `ibv_wc_status` name that libmlx5 gives it, `qpn`
    and `wqe_index` say which work request, `vendor_error` is byte 54.

    >>> print(CompletionError("put", syndrome=0x13, wc_status="REM_ACCESS_ERR", qpn=0x1a, wqe_index=7))
    put (wc_status REM_ACCESS_ERR, syndrome 0x13, qpn 0x1a, wqe_index 7)
    """

    def __init__(
        self,
        what: str,
        *,
        syndrome: int | None = None,
        wc_status: str | None = None,
        qpn: int | None = None,
        wqe_index: int | None = None,
        vendor_error: int | None = None,
        **parts: Any,
    ) -> None:
        hexes = {"syndrome": syndrome, "vendor_error": vendor_error, "qpn": qpn}
        facts: dict[str, Any] = {} if wc_status is None else {"wc_status": wc_status}
        facts.update({name: f"{number:#x}" for name, number in hexes.items() if number is not None})
        if wqe_index is not None:
            facts["wqe_index"] = wqe_index
        super().__init__(what, **facts, **parts)
        self.syndrome = syndrome
        self.wc_status = wc_status
        self.qpn = qpn
        self.wqe_index = wqe_index
        self.vendor_error = vendor_error


class SequenceError(RdmakitError, RuntimeError):
    """A transfer that the receiver of a sequence lock refused to sign off.

    `reason` is the name of its status: GAP, REPEATED, STALE_EPOCH, WRONG_FINGERPRINT or CORRUPT_PAYLOAD; `ticket` the
    one that was due.
    """

    def __init__(self, what: str, *, reason: str | None = None, ticket: int | None = None, **parts: Any) -> None:
        facts: dict[str, Any] = {} if ticket is None else {"ticket": ticket}
        super().__init__(what, **facts, **parts)
        self.reason = reason
        self.ticket = ticket
