"""Worlds whose HCAs are warps: every run launches `hca_serve` for each device, and `hca_leave` behind each launch.

Leans on cta_device. The kernels end by themselves: when all who ring have left and nothing is left to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device import AsyncEvent
from rdmakit.device.endpoint import gid_bytes
from rdmakit.emu.cta_device import CtaDevice
from rdmakit.emu.cta_layout import EVENT_BITS, HCA_GROUP

if TYPE_CHECKING:
    from rdmakit.emu.world import World

__all__ = ["SERVING", "CtaEngine"]

SERVING = SERVE, LEAVE = "hca_serve", "hca_leave"  # cuda/kernels/hca_serve.cu
_STREAM = 1 << 20  # of a rank's serving kernel, and more for more devices: nothing of a caller's runs there
_THREADS = 128  # 4 warps to a group of queue pairs, of which as many may be busy at once


class CtaEngine:
    """The devices of a world, and the kernels that stand for them."""

    def __init__(self, world: World) -> None:
        self.world = world
        count = len(world._devices)
        self.devices = [CtaDevice(world) for _ in range(count)]
        self.changed = True  # since the PODs were last connected
        self._left = world.allocate(1, np.uint32)
        self._ringing: set[tuple[int, int]] = set()  # (rank, stream) of launches that are queued
        self._quiet = False  # what is launched now is ours
        self._riding = False  # blocks of the callers' own kernels serve
        ports = [(i, port) for i, device in enumerate(world._devices) for port in device.ports]
        self._by_gid = {gid_bytes(port.gid): i for i, port in ports if port.gid}
        self._by_lid = {port.lid: i for i, port in ports if port.lid}
        self._ranks = [self._rank_of(*divmod(i, world.topology.nics)) for i in range(count)]

    def reached_by(self, dgid: bytes | None, dlid: int) -> int | None:
        """The device at an address, if there is any."""
        return self._by_gid.get(dgid) if dgid else self._by_lid.get(dlid)

    def _rank_of(self, host: int, nic: int) -> int:
        """The GPU whose warps stand for a device: the first that uses it, or the first of its host."""
        there = [rank for rank in self.world.ranks if rank.host == host]
        return next((rank.index for rank in there if nic in rank.nics), there[0].index)

    def on_one_gpu(self, *devices: int) -> bool:
        """Whether all ranks of these devices' hosts, among which are those that serve, are one GPU."""
        hosts = {device // self.world.topology.nics for device in devices}
        return len({self.world._gpu_of(rank.index) for rank in self.world.ranks if rank.host in hosts}) == 1

    # ---- runs
    def launched(self, rank: int, stream: int) -> None:
        """A kernel was queued, which may ring."""
        if not self._quiet:
            self._ringing.add((rank, stream))

    def _handles(self, leavers: int) -> list[np.ndarray[Any, Any]]:
        if self.changed:
            others = range(len(self.devices))
            for i, device in enumerate(self.devices):
                device.connect_pods(self.devices, [self.on_one_gpu(i, other) for other in others])
            self.changed = False
        self._left[0] = 0
        return [device.describe(self._left, leavers) for device in self.devices]

    @contextlib.contextmanager
    def riding(self, leavers: int) -> Iterator[list[np.ndarray[Any, Any]]]:
        """See `World.riding`."""
        self._riding = True
        try:
            yield self._handles(leavers)
        finally:
            self._riding = False
            self._ringing.clear()

    def launch(self) -> None:
        """Queue what serves, and what says that nobody rings any more. Nothing, if there is nothing to do."""
        if self._riding or not (self._ringing or any(device.has_work() for device in self.devices)):
            return
        self._quiet = True
        try:
            for i, handle in enumerate(self._handles(len(self._ringing))):
                groups = -(-int(handle["count"][0]) // HCA_GROUP)
                if groups:
                    at = {"rank": self._ranks[i], "stream": _STREAM + i}
                    self.world.stock_kernel(SERVE)(groups, _THREADS, (handle,), **at)
            for rank, stream in sorted(self._ringing):
                self.world.stock_kernel(LEAVE)(1, 32, (self._left,), rank=rank, stream=stream)
        finally:
            self._quiet = False
            self._ringing.clear()

    def settle(self, events: list[list[AsyncEvent]], failed: bool) -> None:
        """After a run: what has happened to queue pairs goes to `events`, by device."""
        if failed:
            self._release()
        for device in self.devices:
            device.report.raise_for_status()
        for device, heard in zip(self.devices, events, strict=True):
            for name in ("events", "receive_events"):
                for index in np.nonzero(device.pods[name])[0]:
                    pod = device.pods[index]
                    bits = int(pod[name])
                    pod[name] = 0
                    heard += [AsyncEvent(event, int(pod["qpn"]), 0) for bit, event in EVENT_BITS.items() if bits & bit]

    def _release(self) -> None:
        """Kernels that were ended in the middle of something held turns."""
        for device in self.devices:
            device.report.clear()
            device.pods["turn"] = device.pods["respond"] = 0
            for cq in device.cqs.values():
                cq["turn"] = 0
