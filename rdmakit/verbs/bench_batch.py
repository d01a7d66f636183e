"""What building and posting 64 WRITEs from Python costs, and polling their completions. Prints one JSON object.

Leans on batch, sysfs and _verbs. Takes repetitions and devices, A,B; `rdmakit bench post` runs it. Two ways: by
ibv_post_send and ibv_poll_cq; and, of mlx5 devices, by rings that are written and read here.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.qp_attributes import attribute_mask
from rdmakit.verbs import _verbs, sysfs
from rdmakit.verbs.batch import SEND_WR, WC

BATCH, BYTES, RIGHTS = 64, 64, 0b1111
_TIME_OUT_S = 10


class End:
    """A queue pair with its CQ and memory on a device of its own."""

    def __init__(self, device: str) -> None:
        self.context = _verbs.Context(device)
        ethernet = self.context.query_port(1)["link_layer"] == 2
        chosen = sysfs.choose_gid(sysfs.gid_table(device, 1), ethernet)
        assert chosen is not None, f"{device} has no GID to use"
        self.gid = chosen
        self.pd, self.cq = self.context.alloc_pd(), self.context.create_cq(4 * BATCH)
        self.qp = self.pd.create_qp(self.cq, max_send_wr=4 * BATCH, max_recv_wr=1, max_recv_sge=1)
        self.memory = np.zeros(BATCH * BYTES, np.uint8)
        self.mr = self.pd.reg_mr(self.memory.ctypes.data, self.memory.nbytes, RIGHTS)

    def queues(self, direct: bool) -> tuple[Any, Any]:
        """What posts, and what is polled."""
        if not direct:
            return self.qp, self.cq
        cq = self.cq.direct()
        return self.qp.direct(cq), cq

    def connect(self, peer: End) -> None:
        """To RTS."""
        init: dict[str, Any] = {"pkey_index": 0, "port_num": 1, "qp_access_flags": RIGHTS}
        rtr = {
            "path_mtu": 3,
            "dest_qp_num": peer.qp.qpn,
            "rq_psn": 0,
            "max_dest_rd_atomic": 1,
            "min_rnr_timer": 12,
            "dgid": gid_bytes(peer.gid.gid),
            "sgid_index": self.gid.index,
            "ah_port_num": 1,
        }
        rts = {"timeout": 14, "retry_cnt": 7, "rnr_retry": 7, "sq_psn": 0, "max_rd_atomic": 1}
        for state, values in ((1, init), (2, rtr), (3, rts)):
            self.qp.modify({**values, "qp_state": state}, attribute_mask(values))


def measure(devices: list[str], repetitions: int, direct: bool) -> dict[str, Any]:
    """Medians over `repetitions`: `wr`, ns to build and post a work request; `cqe`, ns to poll a completion; `read`, ns
    to poll one, know that it succeeded and have its wr_id as a Python number. `ok` when every byte arrived each time
    and every wr_id came back in order.

    The first completion of a batch is polled by itself and not timed: who polls does so all the time, so its code is
    in the caches, while the completions are not.
    """
    near, far = End(devices[0]), End(devices[-1])
    near.connect(far)
    far.connect(near)
    qp, cq = near.queues(direct)
    rows = np.arange(BATCH, dtype=np.uint64)
    offsets = rows * BYTES
    requests, done = np.zeros(BATCH, SEND_WR), np.zeros(BATCH, WC)
    requests["flags"], requests["length"] = 2, BYTES  # WRITEs, signalled: what does not differ between batches
    requests["lkey"], requests["rkey"] = near.mr.lkey, far.mr.rkey
    wr_ids, sources, targets = requests["wr_id"], requests["address"], requests["remote_address"]
    first, completions = cq.completions(done[:1]), cq.completions(done)
    posts, polls, reads, ok = [], [], [], True
    rng = np.random.default_rng(0)
    for repetition in range(repetitions):
        near.memory[:] = rng.integers(0, 256, near.memory.size, np.uint8)
        began = time.perf_counter_ns()
        np.add(rows, BATCH * repetition, out=wr_ids)
        np.add(offsets, near.mr.address, out=sources)
        np.add(offsets, far.mr.address, out=targets)
        qp.post_send(requests)
        posts.append(time.perf_counter_ns() - began)
        got, polled, read, deadline = 0, 0, 0, time.monotonic() + _TIME_OUT_S
        order: list[int] = []
        while got < BATCH and time.monotonic() < deadline:
            time.sleep(0)
            if got == 0 and (got := first.poll()) == 0:
                continue
            order = order or first.wr_ids(1)
            time.perf_counter_ns()  # its code has left the caches, too
            began = time.perf_counter_ns()
            found = completions.poll(got)
            ended = time.perf_counter_ns()
            if found:
                well = not completions.failed
                order += completions.wr_ids(found, got)
                read += time.perf_counter_ns() - began
                polled += ended - began  # of polls that found some: not how long the device takes
                ok = ok and well
            got += found
        polls.append(polled)
        reads.append(read)
        ok = ok and order == requests["wr_id"].tolist() and not done["status"].any()
        ok = ok and bool((far.memory == near.memory).all())
    each = {"wr": (posts, BATCH), "cqe": (polls, BATCH - 1), "read": (reads, BATCH - 1)}
    return {"ok": ok, **{name: statistics.median(spent) / count for name, (spent, count) in each.items()}}


def both_ways(names: list[str], repetitions: int) -> dict[str, Any]:
    """`ns_per_<wr|cqe|read>`, with `_direct` at their end for the second way, and `ok`."""
    ways = [("", measure(names, repetitions, False))]
    if all(each["mlx5"] for each in _verbs.devices() if each["name"] in names):
        ways.append(("_direct", measure(names, repetitions, True)))
    figures = {f"ns_per_{name}{way}": value for way, found in ways for name, value in found.items() if name != "ok"}
    return {"ok": all(found["ok"] for _, found in ways), **figures}


if __name__ == "__main__":
    print(json.dumps(both_ways(sys.argv[2].split(","), int(sys.argv[1]))))
