"""Engines of several hosts in one process, over real devices: a thread a rank while they join, one world for kernels."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "any"), str(HERE.parent / "unit")]

import internode_rig  # noqa: E402
from connect_rig import results  # noqa: E402

from rdmakit.connect import FileStore, StoreRendezvous, open_paths  # noqa: E402
from rdmakit.emu.outside import OutsideWorld  # noqa: E402
from rdmakit.ep.device_hosts import RunnerHost, shape_of  # noqa: E402


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

    @property
    def meshes(self):
        return [engine.queue_pairs.mesh for engine in self.engines]
