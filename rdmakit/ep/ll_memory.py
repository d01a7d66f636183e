"""What lies in a rank's heap for low-latency dispatch and combine through queue pairs: LlHeap of cuda/rdmakit/ll.cuh.

Leans on ep.heap.
"""

from __future__ import annotations

from rdmakit.ep.heap import HeapLayout, sixteens

__all__ = ["ll_heap_layout"]


def ll_heap_layout(max_tokens: int, hidden: int, experts: int, topk: int, ranks: int) -> HeapLayout:
    """Regions by their names in LlHeap. Two of each buffer: one call may still be read while the next one arrives.

    >>> ll_heap_layout(128, 7168, 16, 8, 2).nbytes >> 20
    115
    """
    heap, rows, local = HeapLayout(), ranks * max_tokens, experts // ranks
    header = sixteens(4 * (1 + topk))
    slot = header + 2 * hidden + 16  # ll_slot_bytes, ll.cuh
    for name, nbytes in {
        "staging": 2 * max_tokens * slot,
        "staged": 8 * max_tokens,
        "messages": 2 * local * rows * slot,
        "counts": 2 * local * ranks * 8,
        "combine_x": local * rows * 2 * hidden,
        "partial": 2 * max_tokens * topk * 2 * hidden,
        "returned": 8 * experts,
    }.items():
        heap.add(name, nbytes)
    return heap
