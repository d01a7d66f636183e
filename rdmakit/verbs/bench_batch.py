"""What building and posting 64 WRITEs from Python costs, and polling their completions. Prints one JSON object.

Leans on batch, sysfs and _verbs. Run where two devices are listed, or one; `rdmakit bench post` does.
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


def measure(devices: list[str], repetitions: int) -> dict[str, Any]:
    """Medians over `repetitions`; `ok` when every byte arrived each time and every wr_id came back in order."""
    near, far = End(devices[0]), End(devices[-1])
    near.connect(far)
    far.connect(near)
    rows = np.arange(BATCH, dtype=np.uint64)
    offsets = rows * BYTES
    requests, done = np.zeros(BATCH, SEND_WR), np.zeros(BATCH, WC)
    requests["flags"], requests["length"] = 2, BYTES  # WRITEs, signalled: what does not differ between batches
    requests["lkey"], requests["rkey"] = near.mr.lkey, far.mr.rkey
    wr_ids, sources, targets = requests["wr_id"], requests["address"], requests["remote_address"]
    posts, polls, ok = [], [], True
    rng = np.random.default_rng(0)
    for repetition in range(repetitions):
        near.memory[:] = rng.integers(0, 256, near.memory.size, np.uint8)
        began = time.perf_counter_ns()
        np.add(rows, BATCH * repetition, out=wr_ids)
        np.add(offsets, near.mr.address, out=sources)
        np.add(offsets, far.mr.address, out=targets)
        near.qp.post_send(requests)
        posts.append(time.perf_counter_ns() - began)
        got, spent, deadline = 0, 0, time.monotonic() + _TIME_OUT_S
        while got < BATCH and time.monotonic() < deadline:
            time.sleep(0)
            began = time.perf_counter_ns()
            found = near.cq.poll(done[got:])
            spent += (time.perf_counter_ns() - began) * bool(found)
            got += found
        polls.append(spent)  # of polls that found some: not how long the device takes
        ok = ok and got == BATCH and not done["status"].any() and bool((done["wr_id"] == requests["wr_id"]).all())
        ok = ok and bool((far.memory == near.memory).all())
    return {"ok": ok, "ns_per_wr": statistics.median(posts) / BATCH, "ns_per_cqe": statistics.median(polls) / BATCH}


if __name__ == "__main__":
    print(json.dumps(measure([str(each["name"]) for each in _verbs.devices()][:2], int(sys.argv[1]))))
