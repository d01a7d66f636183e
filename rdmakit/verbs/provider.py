"""A device of libibverbs behind `rdmakit.device`: PDs, memory, attributes, ports, events. Queues are its subclasses'.

Leans on device (Provider), _verbs and ports. `mlx5_queues` gives QPs the rings that a ConnectX reads, `proxied_queues`
rings that a proxy posts from; the objects on top cannot tell.
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rdmakit.device import AsyncEvent, Device
from rdmakit.device.provider import Bytes, CqQueue, QpQueues, QpRequest, Refused
from rdmakit.errors import BadArgument
from rdmakit.verbs import sysfs
from rdmakit.verbs._verbs import Channel, Context, Cq, DirectCq, DirectQp, Mr, Pd, Qp
from rdmakit.verbs.ports import PORT_ACTIVE, describe_port, flow_label_sport

__all__ = ["ETHERNET_HAS_NONE", "EVENT_NAMES", "NO_MIGRATION", "Reach", "VerbsHca", "aligned"]

EVENT_NAMES = (  # enum ibv_event_type, by the names that emulated devices use as well
    "cq_error",
    "qp_fatal",
    "qp_request_error",
    "qp_access_error",
    "communication_established",
    "sq_drained",
    "path_migrated",
    "path_migration_error",
    "device_fatal",
    "port_active",
    "port_error",
    "lid_change",
    "pkey_change",
    "sm_change",
    "srq_error",
    "srq_limit_reached",
    "last_wqe_reached",
    "client_reregister",
    "gid_change",
    "wq_fatal",
)
_ALIGNMENT = 128
_ADDRESS_VECTOR = 1 << 7
ETHERNET_HAS_NONE = "kernels have no alternate paths between Ethernet ports (core/verbs.c _ib_modify_qp)"
_NO_APM = "devices without IBV_DEVICE_AUTO_PATH_MIG have no alternate paths, and a port must be one of the device's"
NO_MIGRATION = (
    "leave the alternate path out, path_mig_state MIGRATED: a queue pair for each port, or a bond, stands in for it"
)
_ERR, _RESET = 6, 0


def aligned(nbytes: int, alignment: int = _ALIGNMENT) -> Bytes:
    """Zeroed bytes of this process, aligned."""
    raw = np.zeros(nbytes + alignment, np.uint8)
    begin = -raw.ctypes.data % alignment
    return raw[begin : begin + nbytes]


class Reach(Protocol):
    """What makes queues reachable for kernels that no thread of this process runs (rdmakit.gpu.device_queues)."""

    def memory(self, nbytes: int, label: str) -> Bytes:
        """Zeroed, 128-byte aligned, at one address for both."""

    def map(self, memory: np.ndarray[Any, Any]) -> int:
        """Where kernels reach it, as long as the array lives."""

    def register(self, doorbell: int) -> int:
        """Where they reach a doorbell register. NotAvailable: nowhere."""

    def close(self) -> None:
        """The registers are about to go."""


class VerbsHca(ABC):
    """Provider over one opened device."""

    queues = "none"

    def __init__(self, context: Context, spec: str, gid_index: int | None = None, root: Path | None = None) -> None:
        self._context = context
        self._root = root or sysfs.default_root()
        described = [
            describe_port(context, number, self._root, gid_index)
            for number in range(1, int(context.query_device()["phys_port_cnt"]) + 1)
        ]
        self._gid_index = {info.number: index for info, index in described}
        self.traffic_class = 0  # of queue pairs that are connected without naming one
        ports = tuple(info for info, _ in described)
        net = self._root / "class/infiniband" / context.name / "device/net"
        bonded = any((net / name / "master").exists() for name in sysfs.names(net))
        where = f"{self.queues} queues"
        self.device = Device("verbs", context.name, spec, ports, "bond" if bonded else "none", "register", where)
        self._pds: dict[int, Pd] = {}
        self._mrs: dict[int, Mr] = {}
        self._cqs: dict[int, Cq] = {}
        self._qps: dict[int, Qp] = {}
        self._sports: dict[int, int] = {}
        self._qp_ports: dict[int, int] = {}
        self._channel: Channel | None = None
        self._reach: Reach | None = None

    def close(self) -> None:
        if self._reach is not None:
            self._reach.close()  # while its registers are mapped here
        self._channel = None  # it holds the device open, as every handle its parents
        self._context.close()

    # ---- who else reaches its queues
    def reach_by(self, reach: Reach) -> None:
        """Kernels of GPUs use its queues from now on: handles have addresses that `reach` gives."""
        self._reach = reach

    def memory(self, nbytes: int, label: str) -> Bytes:
        return aligned(nbytes) if self._reach is None else self._reach.memory(nbytes, label)

    def for_kernels(self, memory: np.ndarray[Any, Any]) -> int:
        return int(memory.ctypes.data) if self._reach is None else self._reach.map(memory)

    def register_for_kernels(self, doorbell: int) -> int:
        return doorbell if self._reach is None else self._reach.register(doorbell)

    def hca_is_of_the_gpu(self) -> bool:
        """Never: a NIC is a device of its own."""
        return False

    # ---- PD, MR

    def alloc_pd(self) -> int:
        pd = self._context.alloc_pd()
        handle = int(pd.handle)
        self._pds[handle] = pd
        return handle

    def dealloc_pd(self, pd: int) -> None:
        self._pds[pd].close()
        del self._pds[pd]

    def reg_mr(self, pd: int, address: int, nbytes: int, access: int, label: str) -> tuple[int, int]:
        mr = self._pds[pd].reg_mr(address, nbytes, access)
        self._mrs[mr.lkey] = mr
        return mr.lkey, mr.rkey

    def reg_dmabuf_mr(self, pd: int, address: int, nbytes: int, fd: int, access: int, label: str) -> tuple[int, int]:
        mr = self._pds[pd].reg_dmabuf_mr(0, nbytes, address, fd, access)
        self._mrs[mr.lkey] = mr
        return mr.lkey, mr.rkey

    def dereg_mr(self, lkey: int) -> None:
        self._mrs[lkey].close()
        del self._mrs[lkey]

    # ---- queues
    @abstractmethod
    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        """Its entries where whoever polls reads them."""

    @abstractmethod
    def create_qp(self, request: QpRequest) -> QpQueues: ...

    def destroy_cq(self, cqn: int) -> None:
        self._cqs[cqn].close()
        del self._cqs[cqn]

    def destroy_qp(self, qpn: int) -> None:
        self._qps[qpn].close()
        for known in (self._qps, self._sports, self._qp_ports):
            known.pop(qpn, None)

    def batches(self, qpn: int, cqn: int) -> tuple[Qp | DirectQp, Cq | DirectCq]:
        """What posts and polls arrays of `SEND_WR` and `WC` on this queue pair and its send CQ. Refused (EOPNOTSUPP)
        where nothing of this process can."""
        return self._qps[qpn], self._cqs[cqn]

    @abstractmethod
    def cq_is_dead(self, cqn: int) -> bool: ...

    def arm_cq(self, cqn: int, solicited_only: bool) -> None:
        self._cqs[cqn].arm(solicited_only)

    def order(self) -> None:
        self._context.order()

    @abstractmethod
    def ring(self, doorbell: int, value: int) -> None: ...

    @abstractmethod
    def receive_posted(self, qpn: int) -> None: ...

    def progress(self) -> bool:
        """A device works by itself; who waits should let others run meanwhile."""
        self._context.require()
        time.sleep(0)
        return True

    def outcome(self) -> list[str]:
        down = [str(info.number) for info in self.device.ports if not self.port_up(info.number)]
        return [f"port {' and '.join(down)} of {self.device.name} is down"] if down else []

    def _channel_of_events(self) -> Channel:
        if self._channel is None:
            self._channel = self._context.create_channel()
        return self._channel

    # ---- QP attributes
    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None:
        values = dict(attributes)
        if mask & _ADDRESS_VECTOR:
            port = self._qp_ports.get(qpn, 1)
            values.setdefault("ah_port_num", port)
            values.setdefault("sgid_index", self._gid_index.get(port, 0))
            values.setdefault("traffic_class", self.traffic_class)
            self._check_path_bits(port, values)
        if "alt_ah_attr" in values:
            port = int(values["alt_port_num"])
            values["alt_ah_attr"] = {"sgid_index": self._gid_index.get(port, 0), **values["alt_ah_attr"]}
        try:
            self._qps[qpn].modify(values, mask)
        except Refused as refused:
            if refused.code != errno.EINVAL or not ("alt_ah_attr" in values or values.get("path_mig_state")):
                raise
            ethernet = self._is_ethernet(int(values.get("alt_port_num", self._qp_ports.get(qpn, 1))))
            raise Refused(refused.code, f"{refused.message}: {ETHERNET_HAS_NONE if ethernet else _NO_APM}",
                          NO_MIGRATION) from None  # fmt: skip
        if "port_num" in values:
            self._qp_ports[qpn] = int(values["port_num"])
        if values.get("qp_state") in (_RESET, _ERR):
            self._sports.pop(qpn, None)

    def _check_path_bits(self, port: int, values: dict[str, Any]) -> None:
        """Of a RoCE address kernels drop them without a word (rdma_ah_set_path_bits)."""
        if values.get("src_path_bits") and self._is_ethernet(port):
            raise Refused(errno.EINVAL, f"src_path_bits {values['src_path_bits']}: RoCE has no LIDs, so no bits of one",
                          "leave it out; flow_label or the UDP source port choose among paths")  # fmt: skip

    def _is_ethernet(self, port: int) -> bool:
        return 1 <= port <= len(self.device.ports) and self.device.ports[port - 1].link_layer == "Ethernet"

    def query_qp(self, qpn: int) -> dict[str, Any]:
        """ibv_query_qp, with `state`, `udp_source_port` (0 on InfiniBand) and `physical_port` (0: down) beside it."""
        found: dict[str, Any] = dict(self._qps[qpn].query())
        port = int(found["port_num"]) or 1
        sport = flow_label_sport(found["flow_label"], qpn, found["dest_qp_num"]) if self._is_ethernet(port) else 0
        found.update(
            state=found["qp_state"],
            udp_source_port=self._sports.get(qpn, sport),
            physical_port=port if self.port_up(port) else 0,
        )
        return found

    def qp_now(self, qpn: int) -> tuple[int, int]:
        found = self.query_qp(qpn)
        return int(found["state"]), int(found["physical_port"])

    def modify_qp_udp_sport(self, qpn: int, port: int) -> None:
        if not 0 <= port <= 0xFFFF:
            raise BadArgument("no UDP port", value=port, rule="0xC000 … 0xFFFF", remedy="16 bits, of the dynamic range")
        self._qps[qpn].set_udp_sport(port)
        self._sports[qpn] = port

    def query_qp_lag_port(self, qpn: int) -> tuple[int, int]:
        configured, active = self._qps[qpn].lag_port()
        return int(configured), int(active)

    def modify_qp_lag_port(self, qpn: int, port: int) -> None:
        if not 1 <= port <= 0xFF:
            raise BadArgument("no port", value=port, rule="ports count from 1", remedy="1 or 2")
        self._qps[qpn].set_lag_port(port)

    # ---- what can be looked at
    def port_up(self, port: int) -> bool:
        return bool(self._context.query_port(port)["state"] == PORT_ACTIVE)

    def port_counters(self, port: int) -> dict[str, int]:
        return sysfs.counters(self.device.name, port, self._root)

    def counters(self) -> dict[str, int]:
        """The sum over ports of every counter that the kernel has."""
        total: dict[str, int] = {}
        for info in self.device.ports:
            for name, value in self.port_counters(info.number).items():
                total[name] = total.get(name, 0) + value
        return total

    def take_events(self) -> list[AsyncEvent]:
        found = []
        for number, kind, of in self._context.async_events():
            name = EVENT_NAMES[number] if number < len(EVENT_NAMES) else f"event_{number}"
            found.append(AsyncEvent(name, self._cqn_of(of) if kind == "cq" else of, 0))
        if self._channel is not None:
            found += [AsyncEvent("completion", self._completed(handle), 0) for handle in self._channel.events()]
        return found

    def _cqn_of(self, handle: int) -> int:
        return next((cqn for cqn, cq in self._cqs.items() if cq.handle == handle), handle)

    def _completed(self, handle: int) -> int:
        return self._cqn_of(handle)
