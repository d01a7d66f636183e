"""Low-latency dispatch and combine between hosts over real devices: one rank's calls, as Buffer makes them.

Leans on connect, ep.internode, ep.device_queues, ep.ll_memory; the device code is cuda/kernels/ll_*.cu. Each shape of
calls has a heap of its own, registered when it is first asked for: nothing is left there by calls of another shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.connect import Path, Rendezvous
from rdmakit.connect.paths import Registered
from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE
from rdmakit.ep import abi
from rdmakit.ep.device_queues import DeviceQueues
from rdmakit.ep.engine import RECEIVE, SEND
from rdmakit.ep.internode import Internode
from rdmakit.ep.internode_memory import HostsShape, Slab
from rdmakit.ep.layout import check_sizes
from rdmakit.ep.link import HostLink, Link
from rdmakit.ep.ll_memory import ll_heap_layout
from rdmakit.errors import BadState, NotAvailable

__all__ = ["LL_KERNELS", "DeviceInternode", "Register"]

BLOCKS = 20  # of a call, at most
LL_KERNELS = ("ll_dispatch_send", "ll_dispatch_receive", "ll_combine_send_mapped", "ll_combine_receive")
UNRECEIVED = {"dispatch": 2, "combine": 1}  # sent and not received, at most (ll.cuh)

Register = Callable[[int, int], Registered]  # address, bytes → known to all devices


class _Laid:
    """The memory for calls of one shape, and the pod that says where it is. Made by all ranks together."""

    def __init__(self, engine: DeviceInternode, max_tokens: int, hidden: int, experts: int, topk: int) -> None:
        link, queues, shape = engine.link, engine.device_queues, engine.shape
        ranks, local = shape.ranks, shape.local_ranks
        self.sizes = max_tokens, hidden, experts, topk
        self.rows, self.local_experts = ranks * max_tokens, experts // ranks
        layout = ll_heap_layout(*self.sizes, ranks)
        self.nbytes = layout.nbytes
        heaps, self.owner = link.symmetric(self.nbytes, engine.rendezvous.all_gather)
        self.address = heaps[link.rank]
        registered = engine.register(self.address, self.nbytes)
        told = engine.rendezvous.all_gather(registered.told(engine.paths))
        ways = min(shape.channels, self.local_experts)
        self._slab = slab = Slab(link, ranks * ways * (QP_HANDLE.itemsize + 32) + 16 * experts + 8 * ranks + 4096)
        qps, remote = np.zeros((ranks, ways), QP_HANDLE), np.zeros((ranks, ways), abi.REMOTE_MEMORY)
        lkeys = np.zeros((ranks, ways), np.uint32)
        for peer in range(ranks):
            if peer // local == queues.host:
                continue
            for way in range(ways):
                joined = queues.mesh.joined[peer, way]
                qps[peer, way] = queues.posted[peer, way].array[0]
                remote[peer, way] = told[peer]["address"], told[peer]["rkeys"][joined.peer_path]
                lkeys[peer, way] = registered.lkey(joined.path)
        pod = np.zeros(1, abi.LL_RANK)
        values = {
            "layout_version": LAYOUT_VERSION, "rank": link.rank, "ranks": ranks, "host": queues.host,
            "local_ranks": local, "experts": experts, "local_experts": self.local_experts, "topk": topk,
            "hidden": hidden, "max_tokens": max_tokens, "qps_per_rank": ways,
            "heaps": slab.put(np.array(heaps, np.uint64)), "remote_heaps": slab.put(remote),
            "heap_lkeys": slab.put(lkeys), "qps": slab.put(qps),
        }  # fmt: skip
        for name, value in values.items():
            pod[0][name] = value
        _, self.announced = slab.take(2 * experts, np.uint64)
        pod[0]["announced"] = self.announced
        for name in abi.LL_HEAP.names or ():
            pod[0]["at"][name] = layout.offset[name]
        queues.watch(pod[0]["watch"])
        self.pod = slab.put(pod)
        self.registered = registered


class DeviceInternode(Internode):
    """`Internode` over queue pairs of devices, with the low-latency calls of `rdmakit.ep.engine.Engine`.

    `register` makes memory of this rank known to the devices of `paths`; the mesh joins all ranks of different hosts.
    """

    link: HostLink

    def __init__(
        self, link: HostLink, shape: HostsShape, make_queues: Callable[[Link, HostsShape, int], DeviceQueues],
        rendezvous: Rendezvous, paths: list[Path], register: Register, *, timeout_ns: int = 0,
    ) -> None:  # fmt: skip
        self.rendezvous, self.paths, self.register = rendezvous, paths, register
        super().__init__(link, shape, timeout_ns=timeout_ns, queues=make_queues)
        self._laid: _Laid | None = None
        self._epochs = {"dispatch": 0, "combine": 0}
        self._unreceived: dict[str, deque[int]] = {"dispatch": deque(), "combine": deque()}

    @property
    def device_queues(self) -> DeviceQueues:
        """Its queue pairs."""
        assert isinstance(self.queue_pairs, DeviceQueues)
        return self.queue_pairs

    def close(self) -> None:
        """Give everything back: queue pairs, memory regions, memory."""
        self._laid = None
        self.device_queues.close()
        super().close()

    # ---- low latency
    def ll_configure(self, max_tokens: int, hidden: int, experts: int, topk: int, stream: int = 0) -> None:
        """Lay a heap out for these sizes, if it is not. Collective when they change; not between send and receive."""
        self._check_experts(experts)
        self._check_topk(topk)
        check_sizes(hidden, topk=topk, max_tokens=max_tokens, qps_per_rank=self.shape.channels)
        if self._laid is not None and self._laid.sizes == (max_tokens, hidden, experts, topk):
            return
        self._nothing_under_way()
        self.link.settle(stream)
        self._epochs = {"dispatch": 0, "combine": 0}
        self.rendezvous.barrier()  # nobody gives memory back to which others still send
        self._laid = _Laid(self, max_tokens, hidden, experts, topk)
        self.rendezvous.barrier()  # nor sends where nothing is laid out

    def ll_clean(self, stream: int = 0) -> None:
        """Words and epochs as in the beginning. Collective."""
        laid = self._laid
        if laid is None:
            return
        for under_way in self._unreceived.values():
            under_way.clear()
        self.link.settle(stream)
        self.rendezvous.barrier()
        self.link.clear(laid.address, laid.nbytes, stream)
        self.link.clear(laid.announced, 16 * laid.sizes[2], stream)
        self._epochs = {"dispatch": 0, "combine": 0}
        self.link.settle(stream)
        self.rendezvous.barrier()

    def ll_dispatch(
        self, x: int, topk_idx: int, tokens: int, use_fp8: bool, round_scale: bool, use_ue8m0: bool, out_x: int,
        out_scales: int, out_count: int, src_info: int, layout_range: int, row_map: int, statistics: int = 0,
        wait_statistics: int = 0, phases: int = SEND | RECEIVE, stream: int = 0,
    ) -> None:  # fmt: skip
        """As `Engine.ll_dispatch`; `row_map` is this engine's own: 0, or 1 + where the row of that choice is."""
        laid = self._configured()
        form = abi.LL_BY_COLUMN | abi.LL_WIDE_TOPK
        form |= use_fp8 * abi.LL_FP8 | round_scale * abi.LL_ROUND_SCALE | use_ue8m0 * abi.LL_UE8M0
        if phases & SEND:
            epoch = self._send("dispatch")
            args = [laid.pod, x, topk_idx, np.uint32(tokens), np.uint64(epoch), np.uint32(form)]
            self._low_latency("ll_dispatch_send", args, stream)
        if phases & RECEIVE:
            max_tokens, _, _, topk = laid.sizes
            self.link.clear(row_map, 4 * self.ranks * max_tokens * topk, stream)
            out = np.zeros((), abi.LL_RECEIVED)
            out[()] = (out_x, out_scales, out_count, src_info, 0, layout_range, row_map, statistics, wait_statistics)
            args = [laid.pod, out[()], np.uint64(self._receive("dispatch")), np.uint32(form)]
            self._low_latency("ll_dispatch_receive", args, stream)

    def ll_combine(
        self, x: int, topk_idx: int, topk_weights: int, row_map: int, tokens: int, out: int,
        wait_statistics: int = 0, phases: int = SEND | RECEIVE, stream: int = 0,
    ) -> None:  # fmt: skip
        """As `Engine.ll_combine`: sums in order of choice, in float32."""
        laid = self._configured()
        if phases & SEND:
            args = [laid.pod, x, row_map, np.uint64(self._send("combine"))]
            self._low_latency("ll_combine_send_mapped", args, stream)
        if phases & RECEIVE:
            form = np.uint32(abi.LL_WIDE_TOPK)
            epoch = np.uint64(self._receive("combine"))
            args = [laid.pod, out, topk_idx, topk_weights, np.uint32(tokens), epoch, form, wait_statistics]
            self._low_latency("ll_combine_receive", args, stream)

    def _low_latency(self, kernel: str, args: list[Any], stream: int) -> None:
        self._launch(kernel, min(BLOCKS, self.link.blocks), args, stream)

    # ---- masks
    def mask_update(self, rank: int, masked: bool, stream: int = 0) -> None:
        """NotAvailable: ranks of other hosts are not left out."""
        raise _no_masks()

    def mask_query(self, out: int, stream: int = 0) -> None:
        """NotAvailable."""
        raise _no_masks()

    def mask_clean(self, stream: int = 0) -> None:
        """NotAvailable."""
        raise _no_masks()

    # ---- who is where
    def _configured(self) -> _Laid:
        if self._laid is None:
            raise BadState("no low-latency heap", value="ll_configure was not called", rule="it lays it out",
                           remedy="call ll_configure first")  # fmt: skip
        return self._laid

    def _send(self, what: str) -> int:
        under_way = self._unreceived[what]
        if len(under_way) >= UNRECEIVED[what]:
            raise BadState(f"{what} sent {len(under_way)} times and not received", value=len(under_way),
                           rule=f"at most {UNRECEIVED[what]} may wait for their hooks",
                           remedy="call the hooks, oldest first")  # fmt: skip
        self._epochs[what] += 1
        under_way.append(self._epochs[what])
        return self._epochs[what]

    def _receive(self, what: str) -> int:
        if not self._unreceived[what]:
            raise BadState(f"{what} is received before it was sent", value=0, rule="SEND, then RECEIVE",
                           remedy="call it with both phases, or the sending one first")  # fmt: skip
        return self._unreceived[what].popleft()

    def _nothing_under_way(self) -> None:
        for what, under_way in self._unreceived.items():
            if under_way:
                raise BadState(f"a {what} is sent and not received", value=len(under_way),
                               rule="sizes change between calls only", remedy="call its hook first")  # fmt: skip


def _no_masks() -> NotAvailable:
    return NotAvailable("ranks of other hosts cannot be masked", value="enable_shrink",
                        rule="masks are of one host's ranks", remedy="leave enable_shrink out")  # fmt: skip
