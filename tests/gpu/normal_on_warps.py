"""Normal dispatch and combine through HCAs of warps, step by step, with short waits: where does it hang, and why?

    python tests/gpu/normal_on_warps.py [--place host gpu] [--turns 20] [--wait 2] [--tokens 40] [--channels 4]

Exit status 0 when every step of every placement ended right. Beside a failure it prints all reports, doorbells that
were rung and not heard, and how far each queue pair has come.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "any"))

import numpy as np
from moe import make_inputs
from test_ep_normal import round_trip

from rdmakit import gpu
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import RdmakitError


def tell(world: Any, buffer: NormalBuffer) -> None:
    """What is there to be seen of a hang."""
    print(f"  leavers that have left: {int(world._cta._left[0])}")
    for side in buffer.mesh.sides:
        print(f"  rank {side.rank}: {side.report!r}")
    for i, device in enumerate(world._cta.devices):
        print(f"  device {i}: {device.report!r}")
        used = device._used
        unheard = np.flatnonzero(device.registers[:used] != device.heard[:used])
        print(f"    rung, not heard: {unheard.tolist()}; attend: {np.flatnonzero(device.attend[:used]).tolist()}")
        for qpn, pair in device.queue_pairs.items():
            pod = device.pods[pair.index]
            names = ("state", "turn", "producer", "completed", "doorbells", "send_wqes", "cqes", "errors")
            print(f"    QP {qpn:#x}: " + ", ".join(f"{name} {int(pod[name])}" for name in names))


def go(place: str, options: argparse.Namespace) -> bool:
    """All turns with one placement."""
    began = time.monotonic()

    def step(name: str) -> None:
        print(f"  {time.monotonic() - began:7.2f} s  {name}", flush=True)

    print(f"{place}:", flush=True)
    world = gpu.World(hosts=2, engine="cta", placement=place, memory=64 << 20, seed=1)
    buffer = NormalBuffer(
        world, hidden=256, topk=4, experts=16, max_tokens=options.tokens, channels=options.channels, slots=16, chunk=4,
        timeout_ns=int(options.wait * 1e9),
    )  # fmt: skip
    step("buffers are there")
    for name in ("ep_layout", "ep_notify", "ep_dispatch", "ep_combine", "hca_serve", "hca_leave"):
        kernel = world.stock_kernel(name).kernel
        step(f"{name}: {kernel.registers} registers, {kernel.local_bytes} B of local memory a thread")
    for turn in range(options.turns):
        x, idx, weights = make_inputs([options.tokens, options.tokens - 5], 256, 16, 4, turn)
        try:
            wrong = round_trip(world, buffer, x, idx, weights, 16, turn)[1]
        except RdmakitError as error:
            step(f"turn {turn}: {error}")
            tell(world, buffer)
            return False
        step(f"turn {turn}: {'WRONG ' + str(wrong[0]) if wrong else 'right'}")
        if wrong:
            return False
    return True


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs="+", default=["host", "gpu"], choices=["host", "gpu"])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--wait", type=float, default=2, help="seconds that a kernel of the operation waits")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--channels", type=int, default=4)
    options = parser.parse_args()
    right = [go(place, options) for place in options.place]  # each, whatever became of those before
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
