"""A ring with credits over one queue pair: slots come once, whole and in order, and none is filled before it is free.

Leans on ep (mesh, heap, the POD of a channel) and the kernel ring_words.cu.
"""

from __future__ import annotations

import numpy as np

from rdmakit.ep.abi import CHANNEL_HANDLE
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.mesh import Mesh
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.pair import move_on

_OURS = ("staging_payload", "staging_meta", "head", "ring_payload", "ring_meta", "tail", "sent", "received")
_THEIRS = {"peer_payload": "ring_payload", "peer_meta": "ring_meta", "peer_tail": "tail", "peer_head": "head"}
_WORD = 128  # words that different NICs and GPUs write: a line each


@scenario("ring", "slots through a ring with credits that is full all the time", tags=("quick", "queue"))
def ring(scene: Scene) -> None:
    """Options: count=5 slots sent, slots=2 of the ring, chunk=1, words=2 a slot, start (slots that went before), index
    (of the send queues' first WQE).
    """
    count, slots = int(scene.options.get("count", 5)), int(scene.options.get("slots", 2))
    words, chunk = int(scene.options.get("words", 2)), int(scene.options.get("chunk", 1))
    start = int(scene.options.get("start", 0))
    world = scene.world(hosts=2, ports=1)
    layout = HeapLayout()
    for name in ("ring_payload", "staging_payload"):
        layout.add(name, slots * 8 * words)
    for name in ("ring_meta", "staging_meta"):
        layout.add(name, slots * 16)
    for name in ("tail", "head", "sent", "received"):
        layout.add(name, _WORD)
    mesh = Mesh(world, layout, sq_wqebbs=8)
    mesh.connect(0, 1, 1)
    for side in mesh.sides:
        for qp in side.qps.values():
            move_on(qp, int(scene.options.get("index", 0)))
    handles = world.array((2,), CHANNEL_HANDLE)
    for side in mesh.sides:
        for name in ("tail", "head", "sent", "received"):
            side.heap.view(name, np.uint64, (1,))[0] = start
        handle, far = handles[side.rank], mesh.sides[1 - side.rank]
        handle["qp"] = handle["credit_qp"] = side.handles[1 - side.rank, 0].array[0]
        for name in _OURS:
            handle[name] = side.heap.base + layout.offset[name]
        for field, name in _THEIRS.items():
            handle[field] = (far.mr.address + layout.offset[name], far.mr.rkey)
        handle["staging_lkey"] = side.mr.lkey
        for name, value in (("slots", slots), ("payload_stride", 8 * words), ("meta_stride", 16), ("chunk", chunk)):
            handle[name] = value
        scene.watch(side.report)
    source = world.array((count, words), np.uint64, name="source")
    source[...] = np.arange(1, 1 + source.size, dtype=np.uint64).reshape(source.shape)
    out = world.array((count, words), np.uint64, name="out")
    numbers = world.array((count,), np.uint64, name="numbers")
    world.stock_kernel("ring_receive")(1, 32, (handles[1:], out, numbers, count), rank=1)
    world.stock_kernel("ring_send")(1, 32, (handles[:1], source, count), rank=0)
    scene.keep(mesh, handles)
    scene.expect(out, source, "out")
    scene.expect(numbers, start + np.arange(count, dtype=np.uint64), "numbers")


@scenario("ring-wraps", "the ring's counters pass 2**32, indices of WQEs 2**16, its slots start again",
          tags=("quick", "queue"))
def wraps(scene: Scene) -> None:
    """`ring` with start=2**32 - 3, count=7, index=2**16 - 2: a CQE beyond 2**16 tells of WQEs before it, too."""
    scene.options = {"start": (1 << 32) - 3, "count": 7, "index": (1 << 16) - 2, **scene.options}
    ring(scene)
