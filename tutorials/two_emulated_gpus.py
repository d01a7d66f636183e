"""Two ranks of one host with no GPU: dispatch in two halves, and the time between them. Times are modelled.

    python tutorials/two_emulated_gpus.py        # what torchrun_two_gpus.py does where there is no GPU
"""

import numpy as np

import rdmakit
from rdmakit.ep import low_latency, recording

TOKENS, HIDDEN = 128, 1024


def main() -> None:
    print("no GPU: the CPU runner runs both ranks' kernels in this process; times are modelled, there is no CUDA graph")
    tape = recording.shipped()
    tiles = [tape.tile(TOKENS, HIDDEN, rank) for rank in range(2)]
    x, chosen, weights = ([getattr(tile, name) for tile in tiles] for name in ("x", "topk_idx", "topk_weights"))
    world = rdmakit.World(hosts=1, gpus_per_host=2, policy="timed")
    topk = chosen[0].shape[1]
    moe = low_latency.LowLatencyBuffer(world, hidden=HIDDEN, topk=topk, experts=tape.num_experts, max_tokens=TOKENS)

    rows, handles, hook = moe.dispatch(x, chosen, use_fp8=False, return_hook=True)
    sent = world.now_ns / 1e3  # until here the GPUs were busy, from here on they are free for other work
    assert not any(r.packed_recv_count.any() for r in rows), "nothing is received before the hook"
    hook()
    received = world.now_ns / 1e3
    doubled = [2 * r.packed_recv_x for r in rows]  # an expert that doubles
    sums, _ = moe.combine(doubled, handles, chosen, weights)

    for rank, y in enumerate(sums):
        want = 2 * x[rank].astype(np.float32) * weights[rank].sum(1, keepdims=True)
        np.testing.assert_allclose(y.astype(np.float32), want, rtol=2e-2, atol=2e-2)
        # A rank's kernels store to the other's heap by its address: nobody receives, a word says that rows are there.
        own, other = (hex(moe.mesh.sides[r].heap.base) for r in (rank, 1 - rank))
        print(f"rank {rank} of 2: heap at {own}, the other's mapped at {other}; sent after {sent:.0f} µs, "
              f"received after {received:.0f} µs (modelled); ✓ every sum is right")  # fmt: skip


if __name__ == "__main__":
    main()
