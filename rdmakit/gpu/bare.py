"""Queue pairs without a device: rings, records, registers and handles laid out by hand, in memory of a GPU.

Leans on device.handle and emu.cta_layout. For benchmarks, in which nothing but kernels touches a queue: there is one
allocation, filled in on the host, copied to the GPU as a whole and back. A `Platform` says what memory and launches
are; `GpuPlatform` is a GPU, tests bring one over the CPU runner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE, SQ_STATE, struct
from rdmakit.device.report import REPORT, Report
from rdmakit.emu.cta_layout import HCA_CQ, HCA_HANDLE, HCA_QP, HCA_SINK, KEY_ENTRY
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.module import stock_kernel
from rdmakit.layout import CQE_INITIAL_OP_OWN, Opcode

__all__ = ["BareQueue", "GpuPlatform", "Memory", "Platform"]

Array = np.ndarray[Any, Any]
KEY, _PD, _ALL_ACCESS = 1 << 8, 1, 0xF
MEMORY = struct(16, address=(0, "<u8"), key=(8, "<u4"))  # RemoteMemory, LocalMemory: signal.cuh
_RTS, _REGISTER, _NO_DBR = 3, 2, 3  # HcaQpState, HcaDoorbell


class Memory(Protocol):
    """Zeroed memory that kernels reach."""

    def take(self, count: int, dtype: Any) -> tuple[Array, int]:
        """An array as the host fills it in, and where kernels find it; 128-byte aligned."""

    def upload(self) -> None: ...
    def download(self) -> None: ...


class Platform(Protocol):
    """What runs kernels."""

    processors: int

    def memory(self, nbytes: int) -> Memory: ...
    def run(self, kernel: str, grid: int, block: int, args: tuple[int, ...]) -> float:
        """Launch a kernel of cuda/kernels and wait for it; seconds."""


class _GpuMemory:
    def __init__(self, nbytes: int) -> None:
        self._host = np.zeros(nbytes, np.uint8)
        self._device = cupy().zeros(nbytes, np.uint8)
        self._used = 0

    def take(self, count: int, dtype: Any) -> tuple[Array, int]:
        kind, start = np.dtype(dtype), -(-self._used // 128) * 128
        self._used = start + count * kind.itemsize
        return self._host[start : self._used].view(kind), int(self._device.data.ptr) + start

    def upload(self) -> None:
        self._device.set(self._host)

    def download(self) -> None:
        self._host[:] = self._device.get()


class GpuPlatform:
    """The current GPU."""

    def __init__(self) -> None:
        cp = cupy()
        self.processors = int(cp.cuda.Device().attributes["MultiProcessorCount"])

    def memory(self, nbytes: int) -> Memory:
        """One allocation on it."""
        return _GpuMemory(nbytes)

    def run(self, kernel: str, grid: int, block: int, args: tuple[int, ...]) -> float:
        """Timed by events of the GPU's."""
        cp = cupy()
        begin, end = cp.cuda.Event(), cp.cuda.Event()
        begin.record()
        stock_kernel(kernel)(grid, block, args)
        end.record()
        end.synchronize()
        return float(cp.cuda.get_elapsed_time(begin, end)) / 1e3


@dataclass
class BareQueue:
    """The send queue of one queue pair with a collapsed CQ, and its `QpHandle` in `handle`."""

    qpn: int
    handle: Any
    register: int
    cqe: int
    sq: int
    dbrec: int
    ring: Array  # of `sq`, as the host sees it
    state: Array  # SQ_STATE, likewise

    @staticmethod
    def bytes_for(log_sq: int) -> int:
        """Memory that one takes, generously."""
        return (64 << log_sq) + 4096

    @classmethod
    def lay_out(
        cls,
        memory: Memory,
        handle: Any,
        qpn: int,
        log_sq: int,
        report: int,
        *,
        batch: int = 0,
        register: int = 0,
        same_gpu: bool = False,
    ) -> BareQueue:
        """`handle`: the POD to fill in. `register`: where its doorbell lies; by default a line of its own.

        `same_gpu`: whoever answers it is of the GPU that posts; left out, fences reach as far as a NIC.
        """
        ring, sq = memory.take(64 << log_sq, np.uint8)
        _, dbrec = memory.take(2, np.uint32)
        entry, cqe = memory.take(64, np.uint8)
        entry[63] = CQE_INITIAL_OP_OWN
        counters, state = memory.take(1, SQ_STATE)
        _, sink = memory.take(1, np.uint64)
        _, cq_dbrec = memory.take(2, np.uint32)
        register = register or memory.take(1, np.uint64)[1]
        handle["layout_version"], handle["qpn"], handle["sq"] = LAYOUT_VERSION, qpn, sq
        handle["dbrec"], handle["doorbell"], handle["state"] = dbrec + 4, register, state
        handle["same_gpu"] = same_gpu
        handle["sink_address"], handle["sink_lkey"], handle["log_sq"], handle["batch"] = sink, KEY, log_sq, batch
        cq = handle["cq"]
        cq["layout_version"], cq["entries"], cq["dbrec"] = LAYOUT_VERSION, cqe, cq_dbrec
        cq["log_stride"], cq["collapsed"] = 6, 1
        handle["watch"]["report"] = report
        return cls(qpn, handle, register, cqe, sq, dbrec, ring, counters)

    def fill_sink(self, sink: Any, until: int) -> None:
        """A `HcaSink` that ends after `until` WQEs."""
        sink["layout_version"], sink["qpn"], sink["sq"] = LAYOUT_VERSION, self.qpn, self.sq
        sink["doorbell"], sink["cqe_tail"], sink["log_sq"] = self.register, self.cqe + 60, self.handle["log_sq"]
        sink["opcode"], sink["until"] = int(Opcode.RDMA_WRITE), until


def bare_handles(memory: Memory, count: int) -> tuple[Array, int]:
    """`count` `QpHandle` PODs."""
    return memory.take(count, QP_HANDLE)


def bare_sinks(memory: Memory, count: int) -> tuple[Array, int]:
    """`count` `HcaSink` PODs."""
    return memory.take(count, HCA_SINK)


def bare_report(memory: Memory) -> tuple[Report, int]:
    """A report, and where kernels write it."""
    found, address = memory.take(REPORT.itemsize, np.uint8)
    return Report(found), address


def bare_hca(memory: Memory, queues: list[BareQueue], registers: list[int], report: int, doorbell: str) -> int:
    """A `HcaHandle` for each of two queue pairs that are connected to each other; address of the first.

    `registers`: where each one's lies, 16 words apart. Every key that is `KEY` reaches all memory. Whoever reads is
    of the same GPU if the handles of `queues` say so.
    """
    keys, keys_at = memory.take(2, KEY_ENTRY)
    keys[1] = (0, (1 << 64) - 1, 0, KEY, _ALL_ACCESS, _PD, 1)
    pods, pods_at = memory.take(2, HCA_QP)
    cqs, cqs_at = memory.take(2, HCA_CQ)
    handles, handles_at = memory.take(2, HCA_HANDLE)
    _, left = memory.take(1, np.uint32)
    for i, queue in enumerate(queues):
        _, attend = memory.take(16, np.uint32)
        _, heard = memory.take(16, np.uint64)
        pod, cq, handle = pods[i], cqs[i], handles[i]
        cq["entries"], cq["dbrec"] = queue.cqe, int(queue.handle["cq"]["dbrec"])
        cq["log_stride"], cq["collapsed"] = 6, 1
        pod["layout_version"], pod["qpn"], pod["sq"], pod["dbrec"] = LAYOUT_VERSION, queue.qpn, queue.sq, queue.dbrec
        pod["send_cq"] = pod["recv_cq"] = cqs_at + i * HCA_CQ.itemsize
        pod["peer"], pod["attend"] = pods_at + (1 - i) * HCA_QP.itemsize, attend
        pod["keys"] = pod["peer_keys"] = (keys_at, 2)
        pod["log_sq"], pod["pd"], pod["access"] = queue.handle["log_sq"], _PD, _ALL_ACCESS
        pod["doorbell"] = _NO_DBR if doorbell == "no_dbr" else 1
        pod["max_rd_atomic"] = pod["max_dest_rd_atomic"] = 16
        pod["rnr_retry"], pod["state"], pod["same_gpu"] = 7, _RTS, queue.handle["same_gpu"]
        handle["layout_version"], handle["count"], handle["qps"] = LAYOUT_VERSION, 1, pods_at + i * HCA_QP.itemsize
        handle["registers"], handle["heard"], handle["attend"] = registers[i], heard, attend
        handle["left"], handle["leavers"], handle["watch"]["report"] = left, 2, report
    return handles_at
