"""What a backend gives the public objects: one opened device, in plain numbers and NumPy memory.

Leans on NumPy and notebook. `Context` and its children are written against `Provider`; each backend implements it and
knows nothing of them. Numbers are those of libibverbs (`man ibv_create_qp`, `man ibv_modify_qp`). A verb that
the device refuses raises `Refused` with its errno; the object whose verb it was turns that into a typed
error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from rdmakit.device.notebook import table_html

__all__ = ["AsyncEvent", "CqQueue", "Device", "PortInfo", "Provider", "QpQueues", "QpRequest", "Refused"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Refused(Exception):
    """A verb that the device refused: `code` is the errno, `message` the device's reason, `remedy` what it advises.

    `facts` go into the typed error: a command's status and syndrome, say.
    """

    def __init__(self, code: int, message: str, remedy: str | None = None, **facts: Any) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.facts = facts


@dataclass(frozen=True)
class PortInfo:
    """A physical port: `ib_port` is the number that a QP names (both ports of a bonded pair show as 1)."""

    number: int
    ib_port: int
    gid: str
    lid: int
    mtu: int
    link_layer: str
    bytes_per_second: int


@dataclass(frozen=True, repr=False)
class Device:
    """What can be said of a device without opening it; `spec` is the string that opens it.

    >>> Device("emu", "mlx5_0", "emu:host=0,nic=0", (), "none", "dbrec", "host 0")
    <Device mlx5_0 of host 0: 0 ports, lag none, doorbell dbrec, opened by 'emu:host=0,nic=0'>
    """

    backend: str
    name: str
    spec: str
    ports: tuple[PortInfo, ...]
    lag: str
    doorbell: str
    where: str = ""

    def __repr__(self) -> str:
        count, place = len(self.ports), f" of {self.where}" if self.where else ""
        return (
            f"<Device {self.name}{place}: {count} port{'s' * (count != 1)}, lag {self.lag}, doorbell {self.doorbell}, "
            f"opened by {self.spec!r}>"
        )

    def _repr_html_(self) -> str:
        rows = [
            {
                "port": port.number,
                "in verbs": port.ib_port,
                "link": port.link_layer,
                "GID": port.gid,
                "MTU": port.mtu,
                "Gb/s": round(port.bytes_per_second * 8 / 1e9),
            }
            for port in self.ports
        ]
        return table_html(rows, repr(self), title=repr(self)[1:-1])


class CqQueue(NamedTuple):
    """A completion queue's number and memory: `ring` is `entries * cqe_bytes` bytes, `dbrec` 8 bytes."""

    cqn: int
    ring: Bytes
    dbrec: Bytes


class QpQueues(NamedTuple):
    """A queue pair's number and memory: rings, doorbell record (8 bytes), the register's address."""

    qpn: int
    sq: Bytes
    rq: Bytes | None
    rq_stride: int
    dbrec: Bytes
    doorbell: int


@dataclass(frozen=True)
class QpRequest:
    """What `create_qp` asks for; sizes as powers of two, `cqn`s and `pd` as numbers of the same device."""

    pd: int
    send_cqn: int
    recv_cqn: int
    log_sq_wqebbs: int
    log_rq_wqes: int
    max_recv_sge: int
    max_inline: int
    sq_sig_all: bool
    scatter_to_cqe: bool
    doorbell: str | None
    label: str
    out_of_order: bool = False


class AsyncEvent(NamedTuple):
    """An asynchronous event: IBV_EVENT_* in lower case, the QP, CQ or port number, a syndrome or 0."""

    name: str
    number: int
    syndrome: int


class Provider(Protocol):
    """One opened device. Every method may raise `Refused`."""

    device: Device

    def hca_is_of_the_gpu(self) -> bool:
        """Whether warps of the one GPU that posts stand for the device, so that a fence of gpu scope reaches it."""

    def for_kernels(self, memory: np.ndarray[Any, Any]) -> int:
        """Where kernels reach memory of its queues; it stays so as long as that array lives. NotAvailable: nowhere."""

    def register_for_kernels(self, doorbell: int) -> int:
        """Where kernels reach a doorbell register. NotAvailable when it cannot be mapped for them."""

    def close(self) -> None: ...
    def alloc_pd(self) -> int: ...
    def dealloc_pd(self, pd: int) -> None: ...
    def reg_mr(self, pd: int, address: int, nbytes: int, access: int, label: str) -> tuple[int, int]:
        """lkey and rkey of the bytes at `address`."""

    def reg_dmabuf_mr(self, pd: int, address: int, nbytes: int, fd: int, access: int, label: str) -> tuple[int, int]:
        """The same of another device's memory, which `fd` has exported as a dma-buf and whose address is `address`."""

    def dereg_mr(self, lkey: int) -> None: ...
    def create_cq(
        self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str
    ) -> CqQueue: ...
    def destroy_cq(self, cqn: int) -> None: ...
    def cq_is_dead(self, cqn: int) -> bool: ...
    def arm_cq(self, cqn: int, solicited_only: bool) -> None: ...
    def create_qp(self, request: QpRequest) -> QpQueues: ...
    def destroy_qp(self, qpn: int) -> None: ...
    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None: ...
    def query_qp(self, qpn: int) -> dict[str, Any]: ...
    def qp_now(self, qpn: int) -> tuple[int, int]:
        """`state` and `physical_port` of `query_qp` alone."""

    def modify_qp_udp_sport(self, qpn: int, port: int) -> None: ...
    def query_qp_lag_port(self, qpn: int) -> tuple[int, int]: ...
    def modify_qp_lag_port(self, qpn: int, port: int) -> None: ...
    def order(self) -> None:
        """Accesses before it stay before those behind it, as the device sees them: between a WQE and the record that
        counts it, between an owner bit and the rest of the CQE.
        """

    def ring(self, doorbell: int, value: int) -> None:
        """Write 8 bytes to a doorbell register; `value` in the machine's own byte order."""

    def receive_posted(self, qpn: int) -> None:
        """The receive doorbell record has moved on. Hardware looks by itself."""

    def progress(self) -> bool:
        """Let the device work. False: nothing under way can complete without help from outside."""

    def memory(self, nbytes: int, label: str) -> Bytes:
        """Zeroed bytes, 128-byte aligned, that kernels and the device reach."""

    def outcome(self) -> list[str]:
        """Why `progress` has nothing to do, a sentence each: RNR waits, ports that are down."""

    def port_up(self, port: int) -> bool: ...
    def port_counters(self, port: int) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]: ...
    def take_events(self) -> list[AsyncEvent]: ...
