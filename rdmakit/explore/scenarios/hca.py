"""The HCA made of warps, explored with those who post to it and those who read what it writes: its orders and scopes.

Leans on pair. Option `place`: "one" GPU for all, poster, server and reader; "two" hosts, so that the reader is of another;
"apart": the server is of another GPU than its poster, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.emu import World
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.pair import remote

# hosts, GPUs a host, NICs a GPU; ranks that send and receive, and the streams that they do it in.
PLACES: dict[str, tuple[int, int, float, tuple[int, int], tuple[int, int]]] = {
    "one": (1, 1, 1, (0, 0), (0, 1)),
    "two": (2, 1, 1, (0, 1), (0, 0)),
    "apart": (2, 2, 0.5, (1, 3), (0, 0)),
}
_OK, _FAILED = 1, 3  # what put_and_tell tells: 1 + Status


class Ends:
    """Two connected queue pairs, `words` words of 8 bytes and one more at each, and handles to post with."""

    def __init__(self, scene: Scene, words: int) -> None:
        place = str(scene.options.get("place", "one"))
        if place not in PLACES:
            raise BadArgument("no such place", value=place, rule=f"one of {', '.join(PLACES)}", remedy="place=one")
        hosts, gpus, nics, self.ranks, self.streams = PLACES[place]
        doorbell = str(scene.options.get("doorbell", "dbrec"))
        self.world: World = scene.world(
            hosts=hosts, gpus_per_host=gpus, nics_per_gpu=nics, ports=1, engine="cta", doorbell=doorbell
        )
        self.memory, self.regions, self.qps = [], [], []
        for rank, name in zip(self.ranks, ("source", "sink"), strict=True):
            context = self.world.open_rank(rank)
            pd = context.alloc_pd()
            self.memory.append(self.world.array(words + 1, np.uint64, name=name))
            self.regions.append(pd.register(self.memory[-1]))
            collapsed = bool(scene.options.get("collapsed", False))
            self.qps.append(pd.create_qp(context.create_cq(16, collapsed=collapsed), sq_wqebbs=8))
        self.qps[0].connect(self.qps[1])
        self.qps[1].connect(self.qps[0])
        self.memory[0][:words] = np.arange(1, 1 + words, dtype=np.uint64) * np.uint64(0x0101_0101_0000_0001)
        self.handles = [qp.device_handle(rank=rank) for qp, rank in zip(self.qps, self.ranks, strict=True)]
        scene.keep(self)

    def launch(self, end: int, kernel: str, *arguments: Any) -> None:
        """A kernel of one thread at an end."""
        self.world.stock_kernel(kernel)(1, 32, arguments, rank=self.ranks[end], stream=self.streams[end])

    def local(self, end: int) -> Any:
        """What kernels take for an end's words."""
        return remote(self.regions[end].address, self.regions[end].lkey)

    def far(self, end: int, word: int = 0) -> Any:
        """What they take for the other end's, from `word` on."""
        there = self.regions[1 - end]
        return remote(there.address + 8 * word, there.rkey)


@scenario("hca-puts", "two puts and their signals, one behind the other, through an HCA made of warps", tags=("hca",))
def hca_puts(scene: Scene) -> None:
    """The reader finds both, and whoever posted finds what the last signal brought back. `words`: of both puts."""
    words = int(scene.options.get("words", 2))
    ends = Ends(scene, words)
    total, found = ends.world.array(1, np.uint64, name="sum"), ends.world.array(1, np.uint64, name="found")
    signal, watch = ends.regions[1].address + 8 * words, ends.handles[1].array["watch"][0]
    ends.launch(1, "wait_and_sum", signal, 2, ends.memory[1], 2 * words, total, watch)
    ends.launch(0, "put_twice", ends.handles[0].array, ends.far(0), ends.local(0), 4 * words, ends.far(0, words), found)
    scene.watch(*ends.handles)
    scene.expect(ends.memory[1][words:], 2, "signal")
    scene.expect(total, ends.memory[0][:words].view(np.uint32).sum(dtype=np.uint64))
    scene.expect(found, 1, "found")


@scenario("hca-peer-fails", "a peer's queue pair ends in an error while a warp has one to itself", tags=("hca",))
def hca_peer_fails(scene: Scene) -> None:
    """One end's put is refused; the other, told of it, puts to a queue pair that does not listen any more."""
    ends = Ends(scene, 1)
    told, ended = (ends.world.array(1, np.uint32, name=name) for name in ("told", "ended"))
    nowhere = remote(ends.regions[0].address + 4096, ends.regions[0].rkey)
    ends.launch(1, "put_and_tell", ends.handles[1].array, nowhere, ends.local(1), 8, told)
    ends.launch(0, "put_when_told", ends.handles[0].array, ends.far(0), ends.local(0), 8, told, ended)
    scene.expect(told, _FAILED, "told")
    scene.expect(ended, _FAILED, "ended")
    scene.expect(ends.memory[1], 0, "sink")
