"""Engines of several hosts in one process, over real devices: a thread a rank to join, one world for kernels."""

from __future__ import annotations

import internode_rig
import numpy as np
from connect_rig import results
from internode_rig import BF16, FP8

from rdmakit.connect import FileStore, StoreRendezvous, open_paths
from rdmakit.emu.outside import OutsideWorld
from rdmakit.ep.device_hosts import RunnerHost, shape_of
from rdmakit.ep.engine import RECEIVE, SEND


def shared_out(names, hosts):
    """As many devices for each host; the same one again where there are too few."""
    each = max(1, len(names) // hosts)
    return [[names[(host * each + i) % len(names)] for i in range(each)] for host in range(hosts)]


class Rig(internode_rig.Rig):
    """`devices[host]`: names of that host's devices. Heaps are poisoned but for words that begin at 0."""

    def __init__(
        self, meeting, devices, local=1, *, seed=0, channels=2, nvl=1 << 20, rdma=1 << 18, max_tokens=64, patience_s=20,
        **options,
    ):  # fmt: skip
        hosts = len(devices)
        self.ranks, self.local = hosts * local, local
        shape = shape_of(self.ranks, local, num_qps_per_rank=channels, rdma_bytes=rdma, nvl_bytes=nvl,
                         max_tokens=max_tokens)  # fmt: skip
        self.world = OutsideWorld(self.ranks, seed=seed, patience_s=patience_s)
        self.hosts = [RunnerHost(shape, host * local, world=self.world) for host in range(hosts)]
        layout = shape.heap_layout()
        for host in self.hosts:
            for heap in host.heaps:
                for name in ("ring_payload", "ring_meta", "staging_payload", "staging_meta", "region", "pool",
                             "notify_in"):  # fmt: skip
                    heap[layout.offset[name] : layout.offset[name] + layout.size[name]] = 0xA5

        def join(rank):
            rendezvous = StoreRendezvous(FileStore(meeting), rank, self.ranks, timeout_s=30)
            paths = open_paths(devices[rank // local])
            return self.hosts[rank // local].join(rendezvous, paths, **options)

        self.engines = results(self.ranks, join)

    def run(self):
        self.world.run()
        for engine in self.engines:
            engine.link.report.raise_for_status()

    # ---- low latency
    def ll_configure(self, *sizes):
        """Collective: memory is registered, and told."""
        results(self.ranks, lambda rank: self.engines[rank].ll_configure(*sizes))

    def ll_dispatch(self, x, idx, experts, most, *, fp8=False, ue8m0=False, halves=False):
        """What each rank receives, by name; `halves`: all send, then all receive. Statistics begin at 7."""
        local, rows, hidden, topk = experts // self.ranks, self.ranks * most, x[0].shape[1], idx[0].shape[1]
        self.ll_configure(most, hidden, experts, topk)
        scales = ((local, hidden // 512, rows, 4), np.uint8) if ue8m0 else ((local, hidden // 128, rows), np.float32)
        calls = []
        for r, engine in enumerate(self.engines):
            out = {
                "x": self.array((local, rows, hidden), FP8 if fp8 else BF16), "scales": self.array(*scales),
                "count": self.array((local,), np.int32), "source": self.array((local, rows), np.int32),
                "ranges": self.array((local, self.ranks), np.int64),
                "map": self.array((self.ranks, most, topk), np.int32),
                "statistics": self.world.array((local,), np.int32, 7),
                "waits": self.world.array((self.ranks,), np.int64),
            }  # fmt: skip
            given = self.given(x[r]), self.given(idx[r].astype(np.int64))
            args = (*map(internode_rig.address, given), len(x[r]), fp8, ue8m0, ue8m0)
            calls.append((engine, args, out, given))
        for phases in (SEND, RECEIVE) if halves else (SEND | RECEIVE,):
            for engine, args, out, _ in calls:
                engine.ll_dispatch(*args, *map(internode_rig.address, out.values()), phases)
            self.run()
        return [out for *_, out, _ in calls]

    def ll_combine(self, y, got, idx, weights, *, halves=False):
        calls = []
        for r, engine in enumerate(self.engines):
            out = self.array((max(len(idx[r]), 1), y[r].shape[2]), BF16)
            given = self.given(y[r]), self.given(idx[r].astype(np.int64)), self.given(weights[r])
            args = (*map(internode_rig.address, (*given, got[r]["map"])), len(idx[r]), out.ctypes.data, 0)
            calls.append((engine, args, out, given))
        for phases in (SEND, RECEIVE) if halves else (SEND | RECEIVE,):
            for engine, args, _, _ in calls:
                engine.ll_combine(*args, phases)
            self.run()
        return [out[: len(idx[r])] for r, (*_, out, _) in enumerate(calls)]

    @property
    def meshes(self):
        return [engine.queue_pairs.mesh for engine in self.engines]
