"""A first RDMA WRITE: the host posts it, one NIC sends it, the other puts it into memory. Here are its bytes.

    python tutorials/first_write.py

Two emulated ConnectX stand in one world. Everything below is what a program on real ones does: register memory,
make a queue pair on each side, connect them, post, and wait for the completion. Then the work request (WQE) as the
NIC read it, and the completion (CQE) as the NIC wrote it, field by field.
"""

from __future__ import annotations

import sys

import numpy as np

import rdmakit
from rdmakit.device import QP, Context
from rdmakit.layout import hexdump

MESSAGE = b"No CPU of the far host was asked to put these bytes here."


def queue_pair(context: Context) -> QP:
    """A queue pair with a protection domain and a completion queue of its own."""
    return context.alloc_pd().create_qp(context.create_cq(16))


def main() -> int:
    """0 if the bytes have arrived."""
    with rdmakit.open("emu:world=tutorial,host=0") as here, rdmakit.open("emu:world=tutorial,host=1") as there:
        near, far = queue_pair(here), queue_pair(there)
        # Each side needs a few numbers of the other. Between hosts they travel as JSON.
        near.connect(far.endpoint().to_json())
        far.connect(near.endpoint().to_json())
        print(near, far, sep="\n")

        source = near.pd.register(MESSAGE, "", name="source")
        target = far.pd.register(np.zeros(64, np.uint8), "local_write|remote_write", name="target")
        near.post_write(source, target.remote(), wr_id="my first WRITE")
        completion = near.send_cq.wait()[0]

        print(f"\nThe work request, 64 bytes in the send ring:\n{hexdump(completion.raw_wqe, 'wqe')}")
        print(f"\nThe completion, 64 bytes in the completion queue:\n{hexdump(completion.raw, 'cqe')}\n")
        for context in (here, there):
            print(f"{context.device.where}: {context.port(1)}")

        arrived = target.bytes[: len(MESSAGE)].tobytes()
        ok = completion.ok and completion.wr_id == "my first WRITE" and arrived == MESSAGE
        print(f"\n{'✓' if ok else '✗'} in the far host's memory: {arrived.decode(errors='replace')}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
