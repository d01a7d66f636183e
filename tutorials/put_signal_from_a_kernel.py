"""Device code rings the doorbell: a kernel puts a buffer and a signal; a kernel on the other GPU waits for it.

    python tutorials/put_signal_from_a_kernel.py

The host only prepares. It hands the kernel a *handle*: where the ring lies, where the doorbell is. From there on no
host code runs: the kernel writes two WQEs (a WRITE, and behind it a FETCH_ADD on the peer's signal word), rings once,
and waits for the completion. Both WQEs are on one queue pair, so the signal cannot overtake the data.
The kernels are those of cuda/kernels/put_signal.cu, here on the CPU runner; on a GPU they are the same source.
"""

from __future__ import annotations

import sys

import numpy as np

import rdmakit
from rdmakit.device import connected_pair

COUNT = 10_000


def main() -> int:
    """0 if the second GPU saw the signal once, and behind it all of the data."""
    world = rdmakit.World(hosts=2, seed=7)
    sender, receiver = connected_pair(world.open_rank(0), world.open_rank(1))

    data = world.array(COUNT, np.uint32, np.arange(COUNT), name="data on GPU 0")
    inbox = world.array(COUNT, np.uint32, name="inbox on GPU 1")
    word = world.array(1, np.uint64, name="signal word on GPU 1")
    total = world.array(1, np.uint64, name="sum on GPU 1")
    source, target, signal = sender.pd.register(data), receiver.pd.register(inbox), receiver.pd.register(word)

    # Two launches on two GPUs; nothing runs before world.run(), then both run at the same time.
    handle = sender.device_handle(peer=1)
    wait_and_sum = world.stock_kernel("wait_and_sum")
    wait_and_sum(1, 128, [word, 1, inbox, COUNT, total, handle["watch"]], rank=1)
    put_and_signal = world.stock_kernel("put_and_signal")
    put_and_signal(1, 128, [handle, target.remote(), source, data.nbytes, signal.remote()], rank=0)
    print(put_and_signal, wait_and_sum, handle, world.run(), sep="\n")
    handle.report.raise_for_status()

    print("\nWhat the kernel wrote into the ring:")
    for index in range(sender.posted):
        print(" ", sender.wqe(index).title)
    counters = sender.context.counters
    print(f"doorbells {counters['doorbells']}, WQEs {counters['wqes']}, CQEs {counters['cqes']}")
    print(f"signal word {word[0]}, sum on GPU 1 {total[0]}, sum by NumPy {data.sum(dtype=np.uint64)}")

    ok = word[0] == 1 and total[0] == data.sum(dtype=np.uint64) and np.array_equal(inbox, data)
    print("✓ the signal came behind the data" if ok else "✗ GPU 1 has seen something else")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
