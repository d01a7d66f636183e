"""Host-posted verbs: each writes one WQE into the ring, byte for byte what `rdmakit.layout.encode` says, and
rings.

Leans on queues, mr, endpoint and layout. `Verbs` is the part of `QP` that posts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rdmakit.device.lifetime import Resource
from rdmakit.device.mr import MR, MemorySlice, RemoteMemory
from rdmakit.device.qp_attributes import QPState
from rdmakit.device.queues import ReceiveQueue, SendQueue
from rdmakit.errors import BadArgument, BadState, ForeignObject
from rdmakit.layout import DS_BYTES, MAX_DS, CtrlFlag, FenceMode, Opcode, Sge, encode
from rdmakit.layout.segments import inline_segment, wqe_bytes

if TYPE_CHECKING:
    from rdmakit.device.pd import PD

__all__ = ["Local", "Remote", "Verbs"]

Local = MR | MemorySlice | Sge
Locals = Local | Sequence[Local]
Remote = RemoteMemory | MR | MemorySlice | tuple[int, int]

_FENCES = {
    "none": FenceMode.NONE,
    "small": FenceMode.INITIATOR_SMALL,
    "read_atomic": FenceMode.FENCE,
    "strong": FenceMode.STRONG_ORDERING,
    "fence": FenceMode.SMALL_AND_FENCE,
}
_MAY_SEND = (QPState.RTS, QPState.SQD, QPState.SQE, QPState.ERR)
_MAX_WQE = MAX_DS * DS_BYTES


class Verbs(Resource):
    """Posting. Common arguments of all `post_*`:

    `source`, `target`, `landing`: local memory: an MR, a slice of one, an `Sge` (raw numbers, unchecked), or
    a list of these. `remote`: `RemoteMemory`, an MR or a slice, or (address, rkey). `signalled`: ask for a
    completion. `fence`: "none", "small", "read_atomic", "strong" or "fence" (IBV_SEND_FENCE). `solicited`:
    wake a solicited-only CQ at the receiver. `wr_id`: anything; the completion carries it. Each returns the
    WQE's index in basic blocks.

    Errors: BadState before RTS, QueueFull without room, ForeignObject for an MR of another PD. What only the
    device can know (rkeys, bounds, rights) comes back as a completion.
    """

    pd: PD
    qpn: int
    max_inline: int
    _sends: SendQueue
    _receives: ReceiveQueue
    _state: QPState
    _lock: threading.RLock
    _batches: int

    # ---- arguments
    def _sges(self, local: Any) -> list[Sge]:
        parts = [local] if isinstance(local, (MR, MemorySlice, Sge)) else local
        if not isinstance(parts, (list, tuple)):
            raise BadArgument(
                "not local memory",
                value=type(local).__name__,
                rule="an MR, a slice of one, an Sge, or a list of these",
                remedy="register the array first: mr = pd.register(array)",
            )
        return [self._sge(part) for part in parts]

    def _sge(self, part: Any) -> Sge:
        if isinstance(part, Sge):
            return part
        mr = part.mr if isinstance(part, MemorySlice) else part
        if not isinstance(mr, MR):
            raise BadArgument(
                "not local memory",
                value=type(part).__name__,
                rule="an MR, a slice of one, or an Sge",
                remedy="register the array first: mr = pd.register(array)",
            )
        mr._require_open()
        if mr.pd is not self.pd:
            raise ForeignObject(
                f"{mr._name()} is of another protection domain",
                value=mr.pd._name(),
                rule=f"{self._name()} is of {self.pd._name()} and may touch only its memory",
                remedy="register the memory with the QP's own pd, or pass an Sge to see the device refuse it",
            )
        found: Sge = part.sge()
        return found

    @staticmethod
    def _remote(remote: Any) -> tuple[int, int]:
        if isinstance(remote, (RemoteMemory, MemorySlice, MR)):
            return remote.address, remote.rkey
        if isinstance(remote, tuple) and len(remote) == 2:
            return int(remote[0]), int(remote[1])
        raise BadArgument(
            "not remote memory",
            value=type(remote).__name__,
            rule="RemoteMemory, an MR or a slice of the peer's, or (address, rkey)",
            remedy="send the peer's mr.remote().to_json() over",
        )

    @staticmethod
    def _flags(signalled: bool, fence: str, solicited: bool) -> int:
        if fence not in _FENCES:
            raise BadArgument("no such fence", value=fence, rule="one of " + ", ".join(_FENCES),
                              remedy="leave it out where no order is needed")
        flags = CtrlFlag.CQ_UPDATE if signalled else CtrlFlag.NONE
        return int(flags) | int(CtrlFlag.SOLICITED if solicited else 0) | _FENCES[fence] << 5

    # ---- posting
    def _post(self, build: Callable[[int], bytes], wr_id: Any) -> int:
        self._require_open()
        if self._state not in _MAY_SEND:
            raise BadState(
                f"{self._name()} cannot send",
                rule="ibv_post_send needs RTS",
                remedy="qp.connect(peer.endpoint()) takes it there",
                seen=self._state.name,
            )
        with self._lock:
            index = self._sends.post(build, wr_id)
            if not self._batches:
                self._sends.bell()
        return index

    def _post_op(self, opcode: Opcode, body: bytes, flags: int, wr_id: Any, imm: int = 0) -> int:
        return self._post(lambda index: wqe_bytes(opcode, index, self.qpn, flags, body, imm=imm), wr_id)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Write WQEs inside the block, ring once at its end (also when it ends by an exception)."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self.ring()

    def ring(self) -> None:
        """Ring for what is posted and not yet rung: doorbell record, then the register."""
        with self._lock:
            self._sends.bell()
            self._receives.bell()

    def _payload(self, source: Any) -> tuple[bytes, list[Sge]]:
        """Inline bytes, or a scatter list."""
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
            if len(data) > self.max_inline:
                raise BadArgument(
                    "too long to travel inline",
                    value=len(data),
                    rule=f"{self._name()} was created with max_inline={self.max_inline}",
                    remedy="register the memory and pass the MR, or create the QP with a larger max_inline",
                )
            return data, []
        return b"", self._sges(source)

    def post_write(
        self, source: Any, remote: Any, *, signalled: bool = True, fence: str = "none", wr_id: Any = None
    ) -> int:
        """RDMA WRITE of `source` to `remote`. `source` may be bytes, which then travel in the WQE itself."""
        (data, sges), (raddr, rkey) = self._payload(source), self._remote(remote)
        flags = self._flags(signalled, fence, False)
        if data:
            return self._post(
                lambda index: encode.write_inline(
                    index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, data=data, flags=flags
                ),
                wr_id,
            )
        return self._post(
            lambda index: encode.write(index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, sges=sges, flags=flags),
            wr_id,
        )

    def post_write_imm(
        self,
        source: Any,
        remote: Any,
        imm: int,
        *,
        signalled: bool = True,
        fence: str = "none",
        solicited: bool = False,
        wr_id: Any = None,
    ) -> int:
        """RDMA WRITE that also consumes a receive at the peer and gives it the 32-bit `imm`."""
        (data, sges), (raddr, rkey) = self._payload(source), self._remote(remote)
        flags = self._flags(signalled, fence, solicited)
        if data:
            return self._post(
                lambda index: encode.write_inline(
                    index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, data=data, imm=imm, flags=flags
                ),
                wr_id,
            )
        return self._post(
            lambda index: encode.write_imm(
                index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, imm=imm, sges=sges, flags=flags
            ),
            wr_id,
        )

    def post_read(
        self, target: Any, remote: Any, *, signalled: bool = True, fence: str = "none", wr_id: Any = None
    ) -> int:
        """RDMA READ of `remote` into `target`."""
        sges, (raddr, rkey) = self._sges(target), self._remote(remote)
        flags = self._flags(signalled, fence, False)
        return self._post(
            lambda index: encode.read(index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, sges=sges, flags=flags),
            wr_id,
        )

    def post_send(
        self,
        source: Any,
        *,
        signalled: bool = True,
        fence: str = "none",
        solicited: bool = False,
        wr_id: Any = None,
    ) -> int:
        """SEND to the peer's next posted receive. `source` may be bytes, which travel in the WQE itself."""
        data, sges = self._payload(source)
        flags = self._flags(signalled, fence, solicited)
        if data:
            return self._post_op(Opcode.SEND, inline_segment(data), flags, wr_id)
        return self._post(lambda index: encode.send(index=index, qpn=self.qpn, sges=sges, flags=flags), wr_id)

    def post_send_imm(
        self,
        source: Any,
        imm: int,
        *,
        signalled: bool = True,
        fence: str = "none",
        solicited: bool = False,
        wr_id: Any = None,
    ) -> int:
        """SEND with the 32-bit `imm`; `source` may be [] for no payload."""
        data, sges = self._payload(source)
        flags = self._flags(signalled, fence, solicited)
        if data:
            return self._post_op(Opcode.SEND_IMM, inline_segment(data), flags, wr_id, imm)
        return self._post(
            lambda index: encode.send_imm(index=index, qpn=self.qpn, imm=imm, sges=sges, flags=flags), wr_id
        )

    def post_nop(self, *, signalled: bool = True, fence: str = "none", wr_id: Any = None) -> int:
        """A work request that does nothing, in order."""
        flags = self._flags(signalled, fence, False)
        return self._post(lambda index: encode.nop(index=index, qpn=self.qpn, flags=flags), wr_id)

    def post_dump(self, source: Any, *, signalled: bool = True, fence: str = "none", wr_id: Any = None) -> int:
        """DUMP: the device reads `source` and drops it, which flushes earlier inbound writes."""
        (sge,) = self._sges(source)
        flags = self._flags(signalled, fence, False)
        return self._post(lambda index: encode.dump(index=index, qpn=self.qpn, sge=sge, flags=flags), wr_id)

    def post_wqe(self, wqe: bytes, *, wr_id: Any = None) -> int:
        """Post bytes as they are, padded to whole basic blocks: nothing is checked but their number.

        The ctrl segment should carry `posted` as its index and `qpn`; the device says what it thinks of the
        rest. BadArgument unless there are 16 … 1008 bytes, a multiple of 16.
        """
        raw = bytes(wqe)
        padded = -(-len(raw) // 64) * 64
        if not DS_BYTES <= len(raw) <= -(-_MAX_WQE // 64) * 64 or len(raw) % DS_BYTES:
            raise BadArgument("no WQE has this size", value=len(raw), rule=f"16 … {_MAX_WQE} bytes, a multiple of 16",
                              remedy="build it with rdmakit.layout.encode, or pad it with zeros")
        return self._post(lambda index: raw.ljust(padded, b"\0"), wr_id)

    def post_recv(self, target: Any, *, wr_id: Any = None) -> int:
        """A receive into `target` ([] for no payload). BadState in RESET, QueueFull without room."""
        self._require_open()
        if self._state is QPState.RESET:
            raise BadState(
                f"{self._name()} cannot receive",
                rule="ibv_post_recv needs INIT or later",
                remedy="qp.connect(peer.endpoint()), or qp.modify('INIT', …), first",
                seen=self._state.name,
            )
        sges = self._sges(target)
        stride = self._receives.stride
        if self._receives.size and len(sges) * DS_BYTES > stride:
            raise BadArgument(
                "too many buffers for one receive",
                value=len(sges),
                rule=f"{self._name()} was created with room for {stride // DS_BYTES}",
                remedy="create it with a larger max_recv_sge",
            )
        wqe = encode.recv(sges, stride=stride) if self._receives.size else b""
        with self._lock:
            index = self._receives.post(wqe, wr_id)
            if not self._batches:
                self._receives.bell()
        return index
