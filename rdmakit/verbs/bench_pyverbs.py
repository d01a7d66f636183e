"""The same as bench_batch, by pyverbs: one SendWR and SGE object each, one post_send each, as its API has it.

Leans on pyverbs and the standard library only: it runs in the distribution's Python, which has pyverbs.
"""

from __future__ import annotations

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
    import pyverbs.enums as e
    from pyverbs.addr import AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, SendWR

    gid_index = int(os.environ.get("RDMAKIT_GID_INDEX", "1"))
    contexts = [Context(name=names[0]), Context(name=names[-1])]
    ends = []
    for context in contexts:
        pd, cq = PD(context), CQ(context, 4 * BATCH)
        qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=QPCap(4 * BATCH, 1, 1, 1, 0)))
        ends.append((qp, cq, MR(pd, BATCH * BYTES, RIGHTS), pd))
    for (qp, *_), (peer, *_), other in zip(ends, ends[::-1], contexts[::-1], strict=True):
        attributes = QPAttr(port_num=1)
        attributes.dest_qp_num, attributes.path_mtu, attributes.qp_access_flags = peer.qp_num, 3, RIGHTS
        attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        route = GlobalRoute(dgid=other.query_gid(1, gid_index), sgid_index=gid_index)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        qp.to_rts(attributes)
    (qp, cq, source, _), (_, _, target, _) = ends
    posts, polls, reads, ok = [], [], [], True
    rows = list(range(BATCH))
    for repetition in range(repetitions):
        payload, wr_ids = os.urandom(BATCH * BYTES), [BATCH * repetition + i for i in rows]
        source.write(payload, len(payload))
        began = time.perf_counter_ns()
        for i, wr_id in zip(rows, wr_ids, strict=True):
            request = SendWR(
                wr_id=wr_id,
                opcode=e.IBV_WR_RDMA_WRITE,
                num_sge=1,
                sg=[SGE(source.buf + BYTES * i, BYTES, source.lkey)],
                send_flags=e.IBV_SEND_SIGNALED,
            )
            request.set_wr_rdma(target.rkey, target.buf + BYTES * i)
            qp.post_send(request)
        posts.append(time.perf_counter_ns() - began)
        order: list[int] = []
        polled, read, deadline = 0, 0, time.monotonic() + _TIME_OUT_S
        while len(order) < BATCH and time.monotonic() < deadline:
            time.sleep(0)
            order = order or [each.wr_id for each in cq.poll(1)[1]]
            if not order:
                continue
            time.perf_counter_ns()  # its code has left the caches, too
            began = time.perf_counter_ns()
            count, completions = cq.poll(BATCH)
            ended = time.perf_counter_ns()
            if count:
                well = all(each.status == e.IBV_WC_SUCCESS for each in completions)
                order += [each.wr_id for each in completions]
                read += time.perf_counter_ns() - began
                polled += ended - began
                ok = ok and well
        polls.append(polled)
        reads.append(read)
        ok = ok and order == wr_ids and target.read(len(payload), 0) == payload
    return {
        "ok": ok,
        "ns_per_wr_pyverbs": statistics.median(posts) / BATCH,
        "ns_per_cqe_pyverbs": statistics.median(polls) / (BATCH - 1),
        "ns_per_read_pyverbs": statistics.median(reads) / (BATCH - 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[2].split(","), int(sys.argv[1]))))
