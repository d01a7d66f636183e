"""A process with one queue pair, which does what its parent tells it, line by line: the other end of test_processes.py.

Each line on standard input is JSON; each is answered by one line of JSON.
"""

import json
import sys
from typing import Any

import numpy as np

import rdmakit
from rdmakit.device.endpoint import Endpoint
from rdmakit.errors import CompletionError


class Side:
    """One queue pair and one region of memory, poisoned."""

    def __init__(self, device: str, nbytes: int) -> None:
        self.context = rdmakit.open(device)
        self.cq = self.context.create_cq(128)
        self.qp = self.context.alloc_pd().create_qp(self.cq, rq_wqes=8)
        rights = "local_write|remote_write|remote_read|remote_atomic"
        self.mr = self.qp.pd.register(np.full(nbytes, 0xA5, np.uint8), rights)

    def introduction(self) -> dict[str, Any]:
        return {"endpoint": self.qp.endpoint().to_json(), "memory": self.mr.remote().to_json()}

    def meet(self, peer: dict[str, Any]) -> None:
        self.peer = rdmakit.device.mr.RemoteMemory.from_json(peer["memory"])
        # rdma_rxe takes 7 retries, the default, for retries without end (rxe_comp.c).
        self.qp.connect(Endpoint.from_json(peer["endpoint"]), retry_cnt=6)

    def post_and_wait(self, post: Any) -> str:
        """The completion's status."""
        post()
        try:
            self.qp.send_cq.wait(timeout=60.0)
        except CompletionError as error:
            return str(error)
        return "ok"

    def close(self) -> None:
        with self.context:
            pass

    # ---- what a parent can ask for
    def fill(self, seed: int) -> None:
        self.mr.bytes[:] = np.random.default_rng(seed).integers(0, 256, self.mr.bytes.size, np.uint8)

    def content(self) -> str:
        return bytes(self.mr.bytes).hex()

    def receive(self) -> None:
        self.qp.post_recv(self.mr[:])

    def received(self) -> int:
        return int(self.qp.recv_cq.wait(timeout=60.0)[0].byte_len)

    def write(self) -> str:
        return self.post_and_wait(lambda: self.qp.post_write(self.mr[:], self.peer))

    def add(self, value: int, times: int) -> None:
        landing = self.qp.pd.register(np.zeros(1, np.uint64))
        for _ in range(times):
            self.qp.post_fetch_add(landing[:], self.peer.slice(0, 8), value)
            self.qp.send_cq.wait(timeout=60.0)


def main() -> None:
    side = Side(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(side.introduction()), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(side, asked.pop("do"))(**asked)), flush=True)


if __name__ == "__main__":
    main()
