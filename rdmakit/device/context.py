"""An opened device: where PDs and CQs come from; its ports, counters and asynchronous events.

Leans on lifetime and provider. Source of the names: `man ibv_open_device`, `man ibv_query_port`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rdmakit.device.cq import CQ
from rdmakit.device.lifetime import Resource, typed_refusal
from rdmakit.device.notebook import drawing, table_html
from rdmakit.device.pd import PD
from rdmakit.device.provider import AsyncEvent, Device, PortInfo, Provider
from rdmakit.errors import BadArgument

if TYPE_CHECKING:
    from rdmakit.device.qp import QP

__all__ = ["Context", "Port"]


class Port:
    """A physical port of an opened device: `info` says what it is, `up` and `counters` what it does."""

    def __init__(self, context: Context, info: PortInfo) -> None:
        self.context = context
        self.info = info

    @property
    def number(self) -> int:
        """1 or 2, as counters and LAG count."""
        return self.info.number

    @property
    def gid(self) -> str:
        """IPv6 notation."""
        return self.info.gid

    @property
    def up(self) -> bool:
        """Whether its link is."""
        self.context._require_open()
        return self.context._provider.port_up(self.number)

    @property
    def counters(self) -> dict[str, int]:
        """`xmit_data` and `rcv_data` in 4-byte words as IB counts them; `*_bytes` the same octets,
        `*_payload`
        those that applications see, `*_packets`."""
        self.context._require_open()
        return self.context._provider.port_counters(self.number)

    def _row(self) -> dict[str, Any]:
        counters = self.counters
        return {
            "port": self.number,
            "state": "ACTIVE" if self.up else "DOWN",
            "link": self.info.link_layer,
            "GID": self.gid,
            **({"LID": self.info.lid} if self.info.lid else {}),  # InfiniBand only
            "MTU": self.info.mtu,
            "sent B": counters["xmit_bytes"],
            "received B": counters["rcv_bytes"],
        }

    def __repr__(self) -> str:
        counters = self.counters
        return (
            f"<Port {self.number} of {self.context.device.name}: {'up' if self.up else 'down'}, {self.gid}, "
            f"sent {counters['xmit_bytes']} B, received {counters['rcv_bytes']} B>"
        )

    def _repr_html_(self) -> str:
        return table_html([self._row()], repr(self), title=repr(self)[1:-1])


class Context(Resource):
    """An opened device, made by `rdmakit.open` or a backend. Leaving its `with` block closes all that it
    made.

    >>> import rdmakit
    >>> with rdmakit.open("emu:doorbell=dbrec") as context:
    ...     context.alloc_pd()
    <PD 0x1 of mlx5_0: 0 MRs, 0 QPs>
    """

    _kind = "context"

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.device: Device = provider.device
        self._queue_pairs: weakref.WeakValueDictionary[int, QP] = weakref.WeakValueDictionary()
        super().__init__(provider.close, None)

    # ---- making things
    def alloc_pd(self) -> PD:
        """A protection domain: MRs and QPs of one work only with each other."""
        self._require_open()
        return PD(self)

    def create_cq(
        self, entries: int, *, collapsed: bool = False, cqe_bytes: int = 64, overrun_ignore: bool = False
    ) -> CQ:
        """A completion queue of at least `entries` entries (rounded up to a power of two) of 64 or 128 bytes.

        `collapsed`: every completion lands in entry 0, which kernels that only count like (no consumer
        index). `overrun_ignore`: a full CQ is overwritten instead of dying.
        """
        self._require_open()
        return CQ(self, entries, collapsed=collapsed, cqe_bytes=cqe_bytes, overrun_ignore=overrun_ignore)

    # ---- looking at the device
    @property
    def ports(self) -> tuple[Port, ...]:
        """The physical ports, number 1 first."""
        return tuple(Port(self, info) for info in self.device.ports)

    def port(self, number: int = 1) -> Port:
        """One of `ports`. BadArgument when there is none of that number."""
        for info in self.device.ports:
            if info.number == number:
                return Port(self, info)
        raise BadArgument("no such port", value=number, rule=f"{self.device.name} has {len(self.device.ports)}",
                          remedy="ports are counted from 1")

    def ib_port(self, number: int = 1) -> PortInfo:
        """What is known of the port that QPs name by `number`: a bonded pair is one port here, number 1."""
        for info in self.device.ports:
            if info.ib_port == number:
                return info
        known = sorted({info.ib_port for info in self.device.ports})
        raise BadArgument("no such port", value=number, rule=f"a QP of {self.device.name} names one of {known}",
                          remedy="context.ports lists them, counted from 1")

    @property
    def counters(self) -> dict[str, int]:
        """The device's own counters: doorbells of each kind, WQEs, CQEs, errors, retries."""
        self._require_open()
        return self._provider.counters()

    def events(self) -> list[AsyncEvent]:
        """Asynchronous events since the last call, oldest first: (name, number, syndrome)."""
        self._require_open()
        return self._provider.take_events()

    # ---- for its children
    def _find_qp(self, qpn: int) -> QP | None:
        return self._queue_pairs.get(qpn)

    def _qps(self) -> Iterator[QP]:
        return iter([qp for _, qp in sorted(self._queue_pairs.items()) if not qp.closed])

    # ---- shows itself
    def _name(self) -> str:
        return f"context of {self.device.name}"

    def __repr__(self) -> str:
        device = self.device
        state = "closed" if self.closed else f"{len(device.ports)} ports, lag {device.lag}, doorbell {device.doorbell}"
        return f"<Context {device.spec!r}: {device.name} {device.where}, {state}>"

    def _repr_html_(self) -> str:
        if self.closed:
            return drawing(lambda show: None, repr(self))
        return table_html([port._row() for port in self.ports], repr(self), title=repr(self)[1:-1])


def open_context(provider: Provider) -> Context:
    """A context over a backend's opened device; `Refused` becomes a typed error."""
    with typed_refusal("opening the device", device=provider.device.spec):
        return Context(provider)
