"""The same as bench_batch, by the `ibverbs` wheel: one SendWR and SGE object each, all 64 in one post_send call, which
its API allows and pyverbs's does not.

Leans on ibverbs (https://pypi.org/project/ibverbs) and the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from typing import Any

BATCH, BYTES, RIGHTS = 64, 64, 0b1111
_TIME_OUT_S = 10


def measure(names: list[str], repetitions: int) -> dict[str, Any]:
    """Medians over `repetitions`, as bench_batch has them."""
    import ibverbs as ib

    gid_index = int(os.environ.get("RDMAKIT_GID_INDEX", "1"))
    listed = {device.name: device for device in ib.get_device_list()}
    ends = []
    for name in (names[0], names[-1]):
        context = listed[name].open()
        pd, cq = context.alloc_pd(), context.create_cq(4 * BATCH)
        asked = {"max_send_wr": 4 * BATCH, "max_recv_wr": 1, "max_send_sge": 1, "max_recv_sge": 1}
        qp = pd.create_qp(ib.QPInitAttr(send_cq=cq, recv_cq=cq, qp_type=ib.QPType.RC, **asked))
        memory = ctypes.create_string_buffer(BATCH * BYTES)
        mr = pd.reg_mr(ctypes.addressof(memory), BATCH * BYTES, RIGHTS)
        told = ib.local_qp_info(qp, context.query_port(1), context.query_gid(1, gid_index), port=1)
        ends.append((qp, cq, memory, mr, told))
    for (qp, *_), (*_, peer) in zip(ends, ends[::-1], strict=True):
        ib.connect_rc(qp, peer, port=1, sgid_index=gid_index, access=RIGHTS, mtu=3)
    (qp, cq, source, near, _), (_, _, target, far, _) = ends
    here, there, lkey, rkey = ctypes.addressof(source), ctypes.addressof(target), near.lkey, far.rkey
    write, signalled = int(ib.WROpcode.RDMA_WRITE), int(ib.SendFlags.SIGNALED)  # plain numbers are its fastest way
    posts, polls, reads, ok = [], [], [], True
    rows = list(range(BATCH))
    for repetition in range(repetitions):
        payload, wr_ids = os.urandom(BATCH * BYTES), [BATCH * repetition + i for i in rows]
        ctypes.memmove(source, payload, len(payload))
        began = time.perf_counter_ns()
        qp.post_send(
            [
                ib.SendWR(
                    wr_id=wr_id,
                    sg_list=[ib.SGE(here + BYTES * i, BYTES, lkey)],
                    opcode=write,
                    send_flags=signalled,
                    remote_addr=there + BYTES * i,
                    rkey=rkey,
                )
                for i, wr_id in zip(rows, wr_ids, strict=True)
            ]
        )
        posts.append(time.perf_counter_ns() - began)
        order: list[int] = []
        polled, read, deadline = 0, 0, time.monotonic() + _TIME_OUT_S
        while len(order) < BATCH and time.monotonic() < deadline:
            time.sleep(0)
            order = order or [each.wr_id for each in cq.poll(1)]
            if not order:
                continue
            time.perf_counter_ns()  # its code has left the caches, too
            began = time.perf_counter_ns()
            completions = cq.poll(BATCH)
            ended = time.perf_counter_ns()
            if completions:
                well = all(each.is_success for each in completions)
                order += [each.wr_id for each in completions]
                read += time.perf_counter_ns() - began
                polled += ended - began
                ok = ok and well
        polls.append(polled)
        reads.append(read)
        ok = ok and order == wr_ids and target.raw == payload
    return {
        "ok": ok,
        "ns_per_wr_ibverbs": statistics.median(posts) / BATCH,
        "ns_per_cqe_ibverbs": statistics.median(polls) / (BATCH - 1),
        "ns_per_read_ibverbs": statistics.median(reads) / (BATCH - 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[2].split(","), int(sys.argv[1]))))
