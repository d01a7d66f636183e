"""One of four ranks, two a host, whose heaps are memory of GPUs: those of a host map each other's by CUDA IPC.

    python tests/gpu/device_link_program.py file:/tmp/new RANK

Each writes words into what it has mapped, another finds them in its own memory; heaps, then two symmetric regions, the
second of which takes the place of the first. Exit status 0 when every word is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from rdmakit.connect import meet
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.device_link import DeviceLink

RANKS, LOCAL, WORDS = 4, 2, 1000
TO_HOST = 2  # cudaMemcpyDeviceToHost


def check(link, meeting, heaps, seed):
    """Rank r writes row r of every heap that it reaches."""
    assert [bool(heap) for heap in heaps] == [rank in link.local for rank in range(RANKS)], heaps
    for rank in link.local:
        row = np.random.default_rng([seed, link.rank, rank]).integers(0, 2**63, WORDS, dtype=np.uint64)
        link.upload(heaps[rank] + 8 * WORDS * link.rank, row)
    cupy().cuda.Device().synchronize()
    meeting.barrier()
    for writer in link.local:
        found = np.full(WORDS, 0xDEAD, np.uint64)
        cupy().cuda.runtime.memcpy(found.ctypes.data, heaps[link.rank] + 8 * WORDS * writer, found.nbytes, TO_HOST)
        want = np.random.default_rng([seed, writer, link.rank]).integers(0, 2**63, WORDS, dtype=np.uint64)
        assert np.array_equal(found, want), f"rank {writer} wrote elsewhere"
    meeting.barrier()


def main() -> None:
    """See above."""
    place, rank = sys.argv[1], int(sys.argv[2])
    meeting = meet(place, rank, RANKS, timeout_s=120)
    runtime = cupy().cuda.runtime
    runtime.setDevice(rank % runtime.getDeviceCount())
    first = rank // LOCAL * LOCAL
    nbytes = 8 * WORDS * RANKS
    link = DeviceLink(rank, RANKS, nbytes, local=range(first, first + LOCAL), gather=meeting.all_gather)
    meeting.barrier()
    check(link, meeting, link.heaps, 1)
    kept = None
    for turn, more in enumerate((1 << 20, 3 << 20)):
        heaps, owner = link.symmetric(nbytes + more, meeting.all_gather)
        kept = owner  # the one before goes now, when nobody has it mapped any more
        check(link, meeting, heaps, 2 + turn)
    del kept
    meeting.barrier()
    link.close()
    print(f"rank {rank}: all right, on GPU {link.device}")


if __name__ == "__main__":
    main()
