"""Two connected queue pairs of a real NIC, for the cells "on real hardware": kernels run on the CPU and ring its own
registers, as a GPU would.

Leans on `rdmakit.device`, `rdmakit.emu` and `rdmakit.verbs`, all imported when first used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rdmakit.errors import BadArgument, BadState, HangError, NotAvailable

if TYPE_CHECKING:
    from rdmakit.device.context import Context
    from rdmakit.device.mr import MR
    from rdmakit.device.qp import QP
    from rdmakit.emu.outside import OutsideWorld

__all__ = ["RealPair", "active_devices", "emulated", "how_measured", "real_pair", "wqe_of_library"]

KINDS = ("mlx5", "rdma")


class RealPair(NamedTuple):
    """`name` of the NIC, its two queue pairs, and the world that runs kernels over them and has arrays for them."""

    name: str
    near: QP
    far: QP
    world: OutsideWorld

    def quickest(self, kernel: Callable[..., Any], *launch: Any, rounds: int = 6) -> float:
        """Seconds from the start of `kernel(*launch)` to its end, compiling and launching left out; the least of
        `rounds`."""
        took = []
        for _ in range(rounds):
            kernel(*launch)
            began = time.perf_counter()
            self.world.run()
            took.append(time.perf_counter() - began)
        return min(took)


def emulated() -> bool:
    """Whether this process's NICs are those of `rdmakit connectx`."""
    return "_uverbs" in os.environ.get("LD_PRELOAD", "")


def how_measured() -> str:
    """A word for figures of this machine's NICs: "measured", and where it is so, that the NIC is an emulated one.

    >>> how_measured().startswith("measured")
    True
    """
    return "measured, with an emulated NIC: this CPU carries its packets" if emulated() else "measured"


def active_devices(kind: str = "rdma", queues: str = "") -> list[Context]:
    """This machine's RDMA devices with an active port, opened; with `kind` "mlx5" those whose rings kernels reach.

    `queues` as in `rdmakit.open("mlx5_0:queues=proxied")`. NotAvailable, with what there is, where there are none.
    BadArgument for another `kind`.
    """
    from rdmakit.device import open
    from rdmakit.verbs.backend import device_names

    if kind not in KINDS:
        raise BadArgument("no such kind of NIC", value=kind, rule=", ".join(KINDS), remedy="rdma for any")
    names, why = device_names()
    found, seen = [], []
    for name in sorted(names, key=lambda name: (len(name), name)):
        context = open(f"{name}:queues={queues}" if queues else name)
        up = any(port.up for port in context.ports)
        if up and (kind == "rdma" or queues or context.device.where.startswith("mlx5")):
            found.append(context)
            continue
        seen.append(f"{name} ({context.device.where}, {'up' if up else 'no active port'})")
        context.close()
    if not found:
        what, rule = {
            "mlx5": ("no mlx5 NIC with an active port", "kernels ring the registers of an mlx5 NIC"),
            "rdma": ("no RDMA device with an active port", "bytes leave by a port that is up"),
        }[kind]
        raise NotAvailable(what, value=", ".join(seen) or why or "libibverbs lists none", rule=rule,
                           remedy="rdmakit doctor says what is wrong; rdmakit connectx has one for programs",
                           )  # fmt: skip
    return found


def real_pair(
    kind: str = "mlx5", *, queues: str = "", gpus: int = 1, patience_s: float = 10.0, **options: Any
) -> RealPair:
    """Two queue pairs of this machine's first NIC of that `kind` that has an active port, connected to each other.

    `kind` "mlx5": kernels ring its own registers. "rdma": any NIC, soft-RoCE too; where rings cannot be reached, a
    proxy on the CPU posts what kernels write. `queues="proxied"` asks for that proxy in any case. The world has `gpus`
    GPUs, for kernels launched with `rank=…`; `patience_s` bounds how long a kernel waits for nothing; `options` are
    those of `connected_pair`. NotAvailable where there is no such NIC.
    """
    from rdmakit.device import connected_pair
    from rdmakit.emu.outside import OutsideWorld

    context, *others = active_devices(kind, queues)
    for other in others:
        other.close()
    world = OutsideWorld(gpus, patience_s=patience_s)
    world.let_work(context)
    port = next(port.info.ib_port for port in context.ports if port.up)
    near, far = connected_pair(context, context, port=port, **options)
    return RealPair(context.device.name, near, far, world)


def wqe_of_library(pair: RealPair, source: MR, target: MR) -> tuple[int, bytes]:
    """The WQE that the NIC's own library writes for a signalled RDMA WRITE of all of `source` to `target`: the number
    of a queue pair made for it alone, and the 64 bytes of basic block 0 of its ring. The WRITE is done on return.

    NotAvailable where the rings are not the NIC's (`queues="proxied"`, soft-RoCE).
    """
    from rdmakit.device import connected_pair
    from rdmakit.verbs import SEND_WR, WC

    context = pair.near.context
    if not context.device.where.startswith("mlx5"):
        raise NotAvailable("no library fills these rings", value=context.device.where, rule="a ring of libmlx5's",
                           remedy="course.real_pair() gives an mlx5 NIC's own queues")  # fmt: skip
    qp, _ = connected_pair(context, context, port=pair.near.endpoint().port, beside=(pair.near, pair.far))
    provider: Any = context._provider
    request = np.zeros(1, SEND_WR)  # opcode 0 is IBV_WR_RDMA_WRITE
    request["flags"] = 2  # IBV_SEND_SIGNALED
    request["address"], request["length"], request["lkey"] = source.address, source.nbytes, source.lkey
    request["remote_address"], request["rkey"] = target.address, target.rkey
    provider._qps[qp.qpn].post_send(request)
    completions, end = np.zeros(1, WC), time.monotonic() + pair.world.patience_s
    while not provider._cqs[qp.send_cq.cqn].poll(completions):
        if time.monotonic() > end:
            raise HangError("the library's WRITE did not complete", value=f"{pair.world.patience_s:g} s",
                            rule="its NIC works", remedy="rdmakit doctor says what is wrong")  # fmt: skip
    if completions["status"][0]:
        raise BadState("the library's WRITE failed", value=int(completions["status"][0]), rule="a status of 0",
                       remedy="register both with local_write and remote_write")  # fmt: skip
    return qp.qpn, qp.sq_view()[:1].tobytes()
