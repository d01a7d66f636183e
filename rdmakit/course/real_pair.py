"""Two connected queue pairs of a real NIC, for the cells "on real hardware": kernels run on the CPU and ring its own
registers, as a GPU would.

Leans on `rdmakit.device`, `rdmakit.emu` and `rdmakit.verbs`, all imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rdmakit.errors import NotAvailable

if TYPE_CHECKING:
    from rdmakit.device.qp import QP
    from rdmakit.emu.outside import OutsideWorld

__all__ = ["RealPair", "real_pair"]


class RealPair(NamedTuple):
    """`name` of the NIC, its two queue pairs, and the world that runs kernels over them and has arrays for them."""

    name: str
    near: QP
    far: QP
    world: OutsideWorld


def real_pair(*, patience_s: float = 10.0, **options: Any) -> RealPair:
    """Two queue pairs of this machine's first mlx5 NIC that has an active port, connected to each other.

    `patience_s` bounds how long a kernel waits for nothing; `options` are those of `connected_pair`. NotAvailable where
    there is no such NIC.
    """
    from rdmakit.device import connected_pair, open
    from rdmakit.emu.outside import OutsideWorld
    from rdmakit.verbs.backend import device_names

    names, why = device_names()
    seen = []
    for name in names:
        context = open(name)
        up = any(port.up for port in context.ports)
        if context.device.where.startswith("mlx5") and up:
            world = OutsideWorld(patience_s=patience_s)
            world.let_work(context)
            near, far = connected_pair(context, context, **options)
            return RealPair(name, near, far, world)
        seen.append(f"{name} ({context.device.where}, {'up' if up else 'no active port'})")
        context.close()
    raise NotAvailable("no mlx5 NIC with an active port", value=", ".join(seen) or why or "libibverbs lists none",
                       rule="kernels ring the registers of an mlx5 NIC",
                       remedy="rdmakit doctor says what is wrong; rdmakit connectx has one for programs",
                       )  # fmt: skip
