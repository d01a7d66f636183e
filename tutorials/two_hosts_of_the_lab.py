"""Two hosts, two processes, real verbs: queue pairs connected over a socket, bytes, and a lock that keeps their order.

    make lab-setup                                                             # once: downloads a kernel
    rdmakit lab --host each -- python tutorials/two_hosts_of_the_lab.py

The lab is a virtual machine with two hosts. Their devices are soft-RoCE: no NIC, but the kernel's own verbs and real
UDP packets between them. Between two ConnectX this file runs as it is: name the device in RDMAKIT_DEVICE, and start it
on each host with RANK and MASTER_ADDR.
"""

import contextlib
import json
import os
import socket
import sys

import numpy as np

import rdmakit
from rdmakit.device import RemoteMemory
from rdmakit.signal import HostReceiver, HostSender

LETTERS = [b"the first of three", b"the second, which cannot overtake", b""]


def line_to_the_other(rank: int, address: str, port: int):
    """`swap(mine)` gives the other host's: what ends must know of each other travels over a socket, a line each."""
    line = None
    if rank == 0:
        with socket.create_server((address, port)) as server:
            line = server.accept()[0]
    while line is None:
        with contextlib.suppress(ConnectionRefusedError):  # it starts later
            line = socket.create_connection((address, port), timeout=30)
    there, here = line.makefile("w"), line.makefile("r")

    def swap(mine):
        print(json.dumps(mine), file=there, flush=True)
        return json.loads(here.readline())

    return swap


def main() -> int:
    if "RANK" not in os.environ:
        print("this is for two hosts: rdmakit lab --host each -- python tutorials/two_hosts_of_the_lab.py")
        return 0
    rank = int(os.environ["RANK"])
    swap = line_to_the_other(rank, os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", 29500)))
    with rdmakit.open(os.environ.get("RDMAKIT_DEVICE", f"h{rank}r0")) as context:
        print(f"{context.device.name}, {context.device.where}: {context.port(1)}")
        pd = context.alloc_pd()

        # One WRITE. The flow label chooses the UDP source port, at which switches and bonds look.
        qp = pd.create_qp(context.create_cq(16))
        peer = swap(qp.endpoint().to_json())
        qp.connect(peer, flow_label=1 + rank)
        memory = pd.register(np.zeros(64, np.uint8), name="where the peer writes")
        theirs = RemoteMemory(**json.loads(swap(memory.remote().to_json())))
        qp.post_write(f"rank {rank} was here".encode(), theirs)
        qp.send_cq.wait()
        swap("written")
        arrived = memory.bytes.tobytes().rstrip(b"\0")
        print(f"from UDP port {qp.udp_sport:#x} to the peer; in my memory: {arrived.decode()}")

        # A channel that tells when something is there, and signs it off in order.
        end = (HostSender if rank == 0 else HostReceiver)(pd, strategy="imm", slots=8)
        end.connect(swap(end.offer()))
        swap("connected")
        got = [end.send(text) if rank == 0 else end.receive() for text in LETTERS]
        end.finish()
        swap("finished")
        ok = arrived == b"rank %d was here" % (1 - rank) and got == ([0, 1, 2] if rank == 0 else LETTERS)
        print(f"{'✓' if ok else '✗'} {'sent as tickets' if rank == 0 else 'received in order'}: {got}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
