"""The smallest whole protocol: a WRITE and, behind it on the same queue pair, an atomic that says it is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.emu import World
from rdmakit.explore.scenario import Scene, scenario

MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)


@scenario(
    "put-signal",
    "one rank writes to another and signals; the other waits and sums up",
    tags=("quick", "queue", "mutants"),
)
def put_signal(scene: Scene) -> None:
    """`put_and_signal` and `wait_and_sum` of cuda/kernels/put_signal.cu over one QP."""
    exchange(scene, scene.world(hosts=2, ports=1))


@scenario("put-signal-cta", "the same through an HCA made of warps: its device code is explored, too", tags=("hca",))
def put_signal_cta(scene: Scene) -> None:
    """As `put-signal`, with `hca_serve` in place of the HCA model (cuda/rdmakit/hca_engine.cuh)."""
    exchange(scene, scene.world(hosts=2, ports=1, engine="cta"))


def exchange(scene: Scene, world: World, *, same_gpu: bool | None = None) -> None:
    """Queue pairs, memory, both kernels, and what has to be true afterwards.

    `same_gpu`: what the sender's handle says, if not the truth.
    """
    words = int(scene.options.get("words", 16))
    qps, memory, regions = [], [], []
    for rank, name in enumerate(("source", "sink")):
        context = world.open_rank(rank)
        pd = context.alloc_pd()
        qps.append(pd.create_qp(context.create_cq(16), sq_wqebbs=8))
        memory.append(world.array(2 * words + 2, np.uint32, name=name))
        regions.append(pd.register(memory[rank]))
    qps[0].connect(qps[1])
    qps[1].connect(qps[0])
    sender, receiver = (qp.device_handle(rank=rank) for rank, qp in enumerate(qps))
    if same_gpu is not None:
        sender.array["same_gpu"] = same_gpu
    total = world.array(1, np.uint64, name="sum")
    memory[0][: 2 * words] = np.arange(7, 7 + 2 * words)
    signal = regions[1].address + 8 * words

    def remote(address: int, key: int) -> Any:
        return np.array([(address, key)], MEMORY)[0]

    world.stock_kernel("wait_and_sum")(
        1, 32, (signal, 1, memory[1], 2 * words, total, receiver.array["watch"][0]), rank=1
    )
    world.stock_kernel("put_and_signal")(
        1,
        32,
        (
            sender.array,
            remote(regions[1].address, regions[1].rkey),
            remote(regions[0].address, regions[0].lkey),
            8 * words,
            remote(signal, regions[1].rkey),
        ),
        rank=0,
    )
    scene.watch(sender, receiver)
    scene.keep(qps, memory, regions)
    scene.expect(memory[1][2 * words :].view(np.uint64), 1, "signal")  # whatever was sent again
    scene.expect(total, memory[0][: 2 * words].sum())
