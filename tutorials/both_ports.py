"""Both ports of a host at work: a plan puts channels on ports, devices carry them, the ports' counters are the judge.

    make lab-setup                                                             # once: downloads a kernel
    rdmakit lab --host each -- python tutorials/both_ports.py

Each host of the lab has one device for each of its two ports, h0r0 and h0r1, as a NIC whose ports are not bonded.
Channels 0, 2, 4 … of a pair take one port, 1, 3, 5 … the other; left to chance, or to a pool of which kernels index the
first half, one port would idle.
"""

import json
import os
import sys

import numpy as np
from two_hosts_of_the_lab import line_to_the_other

import rdmakit
from rdmakit.device import RemoteMemory
from rdmakit.model import load
from rdmakit.model.plan import make_plan
from rdmakit.verbs.ports import flow_label_for

CHANNELS, EACH = 8, 200_000


def main() -> int:
    if "RANK" not in os.environ:
        print("this is for two hosts: rdmakit lab --host each -- python tutorials/both_ports.py")
        return 0
    rank = int(os.environ["RANK"])
    swap = line_to_the_other(rank, os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", 29500)))
    preset = load("h20-cx7-roce-unbonded").changed(hosts=2, gpus_per_host=1, nics_per_gpu=1)
    plan = make_plan(preset, channels=CHANNELS)
    devices = [rdmakit.open(f"h{rank}r{port}") for port in (0, 1)]
    pds = [device.alloc_pd() for device in devices]
    payload = np.full(EACH, rank + 1, np.uint8)

    channels = []
    for number in range(CHANNELS):
        flow = plan.flow(rank, 1 - rank, number)
        pd = pds[flow.port - 1]
        qp = pd.create_qp(pd.context.create_cq(16))
        # timeout 18: retransmit after a second; an emulated processor may need long to acknowledge.
        qp.connect(swap(qp.endpoint().to_json()), flow_label=flow_label_for(flow.source_port), timeout=18)
        source, target = pd.register(payload), pd.register(np.zeros(EACH, np.uint8))
        theirs = RemoteMemory(**json.loads(swap(target.remote().to_json())))
        channels.append((qp, source, target, theirs))
        print(f"channel {number}: port {flow.port}, UDP source port {qp.udp_sport:#x}")

    before = [device.port(1).counters["xmit_bytes"] for device in devices]
    swap("ready")
    for qp, source, _, theirs in channels:
        qp.post_write(source, theirs)
    for qp, *_ in channels:
        qp.send_cq.wait(timeout=30)
    swap("sent")
    sent = [device.port(1).counters["xmit_bytes"] - old for device, old in zip(devices, before, strict=True)]

    whole = all((target.bytes == 2 - rank).all() for _, _, target, _ in channels)
    ratio = max(sent) / min(sent)
    print(f"payload {CHANNELS * EACH} B; port 1 sent {sent[0]} B, port 2 {sent[1]} B: busiest / idlest {ratio:.3f}")
    ok = whole and ratio < 1.1
    print(f"{'✓ every byte is there, and' if whole else '✗ bytes are missing, and'} the ports are "
          f"{'loaded alike' if ratio < 1.1 else 'not loaded alike'}")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
