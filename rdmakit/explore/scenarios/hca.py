"""The HCA made of warps, explored with those who post to it and those who read what it writes: its orders and scopes.

Leans on pair. Option `place`: "one" GPU for all, poster, server and reader; "two" hosts, so that the reader is of
another; "apart": the server is of another GPU than its poster, too.
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
_FAILED = 3  # what put_and_tell tells: 1 + Status::completion_error
_RECEIVED = 0x20  # op_own of a SEND's CQE in a CQ's first lap


class Ends:
    """Two connected queue pairs, `words` words of 8 bytes and one more at each, and handles to post with."""

    def __init__(self, scene: Scene, words: int) -> None:
        place = str(scene.options.get("place", "one"))
        if place not in PLACES:
            raise BadArgument("no such place", value=place, rule=f"one of {', '.join(PLACES)}", remedy="place=one")
        hosts, gpus, nics, self.ranks, self.streams = PLACES[place]
        doorbell, entries = str(scene.options.get("doorbell", "dbrec")), int(scene.options.get("entries", 16))
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
            self.qps.append(pd.create_qp(context.create_cq(entries, collapsed=collapsed), sq_wqebbs=min(8, entries)))
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


def puts(scene: Scene) -> Ends:
    """Launches the puts of `hca-puts`."""
    parts, each = int(scene.options.get("parts", 2)), int(scene.options.get("words", 1))
    words = parts * each
    ends = Ends(scene, words)
    total, found = ends.world.array(1, np.uint64, name="sum"), ends.world.array(1, np.uint64, name="found")
    signal, watch = ends.regions[1].address + 8 * words, ends.handles[1].array["watch"][0]
    ends.launch(1, "wait_and_sum", signal, parts, ends.memory[1], 2 * words, total, watch)
    to, word = ends.far(0), ends.far(0, words)
    ends.launch(0, "put_parts", ends.handles[0].array, to, ends.local(0), 8 * each, parts, word, found)
    scene.watch(*ends.handles)
    scene.expect(ends.memory[1][words:], parts, "signal")
    scene.expect(total, ends.memory[0][:words].view(np.uint32).sum(dtype=np.uint64))
    scene.expect(found, parts - 1, "found")
    return ends


@scenario("hca-puts", "puts and their signals, one behind the other, through an HCA made of warps", tags=("hca",))
def hca_puts(scene: Scene) -> None:
    """The reader finds all, and whoever posted finds what the last signal brought back.

    `parts`: puts; `words` of 8 bytes each; `entries` of the CQ.
    """
    puts(scene)


@scenario("hca-nobody-waits", "who posts has ended before an HCA made of warps has looked", tags=("hca",))
def hca_nobody_waits(scene: Scene) -> None:
    """Nothing waits for what is posted; the server ends, and has executed all of it."""
    ends = Ends(scene, 1)
    to, word = ends.far(0), ends.far(0, 1)
    ends.launch(0, "put_parts", ends.handles[0].array, to, ends.local(0), 8, 1, word, 0)
    scene.watch(*ends.handles)
    scene.expect(ends.memory[1], [ends.memory[0][0], 1], "sink")


@scenario("hca-peer-fails", "a peer's queue pair ends in an error while a warp has one to itself", tags=("hca",))
def hca_peer_fails(scene: Scene) -> None:
    """One end's puts fail, which ends its queue pair; the other, told of it, puts to a queue pair that does not listen.

    `refused`: by the other end, whose queue pair then ends, too; else for the local key. `waits`: with 0 the other
    does not.
    """
    ends = Ends(scene, 1)
    refused, waits = int(scene.options.get("refused", 0)), int(scene.options.get("waits", 1))
    told, ended = (ends.world.array(1, np.uint32, name=name) for name in ("told", "ended"))
    to, source = ends.far(1), ends.local(1)
    (to if refused else source)["key"] ^= 0xFF
    ends.launch(1, "put_and_tell", ends.handles[1].array, to, source, 8, 2, told)
    scene.expect(told, _FAILED, "told")
    if waits:
        ends.launch(0, "put_when_told", ends.handles[0].array, ends.far(0), ends.local(0), 8, told, ended)
        scene.expect(ended, _FAILED, "ended")
        scene.expect(ends.memory[1], 0, "sink")
    else:
        ends.launch(0, "put_and_tell", ends.handles[0].array, ends.far(0), ends.local(0), 8, 1, ended)
        scene.check(lambda: (int(ended[0]), int(ends.memory[1][0]) != 0) in ((1, True), (_FAILED, False)))


@scenario("hca-receives", "two hosts send to a third, whose receives complete to one CQ", tags=("hca",))
def hca_receives(scene: Scene) -> None:
    """The receive WQEs are posted meanwhile, and two servers of different GPUs write CQEs to the same CQ."""
    world = scene.world(hosts=3, ports=1, engine="cta")
    middle = world.open_rank(1)
    pd, cq = middle.alloc_pd(), middle.create_cq(4)
    sink = world.array(2, np.uint64, name="sink")
    target = pd.register(sink)
    for i, rank in enumerate((0, 2)):
        context = world.open_rank(rank)
        own = context.alloc_pd()
        source = world.array(1, np.uint64, 7 + i, name="source")
        near = own.create_qp(context.create_cq(4), sq_wqebbs=4)
        far = pd.create_qp(middle.create_cq(4), cq, rq_wqes=4, max_recv_sge=1)
        near.connect(far)
        far.connect(near)
        handle, region = near.device_handle(rank=rank), own.register(source)
        world.stock_kernel("send_some")(1, 32, (handle.array, remote(region.address, region.lkey), 8), rank=rank)
        queues = far._queues
        assert queues.rq is not None
        to = remote(target.address + 8 * i, target.lkey)
        world.stock_kernel("receive_into")(
            1, 32, (queues.rq.ctypes.data, queues.dbrec.view(np.uint32), to, 8), rank=1, stream=i
        )
        scene.watch(handle)
        scene.keep(near, far, region)
    scene.keep(target)
    scene.expect(sink, [7, 8], "sink")
    for entry in range(2):
        scene.expect(cq._ring[64 * entry + 63 : 64 * entry + 64], _RECEIVED, "op_own of a CQE")
