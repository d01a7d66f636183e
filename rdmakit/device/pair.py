"""Two queue pairs that are connected to each other: where an experiment starts when connecting is not what it
is about.

Leans on context and qp.
"""

from __future__ import annotations

from typing import Any

from rdmakit.device.context import Context
from rdmakit.device.qp import QP

__all__ = ["connected_pair"]


def connected_pair(
    here: Context,
    there: Context,
    *,
    port: int = 1,
    peer_port: int | None = None,
    cq_entries: int = 256,
    **options: Any,
) -> tuple[QP, QP]:
    """A queue pair on each of two opened devices, connected from `port` to `peer_port` (the same number by
    default), in RTS.

    Each has a PD (`qp.pd`) and a CQ of `cq_entries` (`qp.send_cq`) of its own, which live as long as it does.
    `options` go to `PD.create_qp`.

    >>> import rdmakit
    >>> with rdmakit.open("emu:world=pair,host=0") as here, rdmakit.open("emu:world=pair,host=1") as there:
    ...     near, far = connected_pair(here, there)
    ...     near.state.name, far.state.name
    ('RTS', 'RTS')
    """
    made = []
    for context in (here, there):
        made.append(context.alloc_pd().create_qp(context.create_cq(cq_entries), **options))
    near, far = made
    peer_port = port if peer_port is None else peer_port
    near.connect(far.endpoint(peer_port), port=port)
    far.connect(near.endpoint(port), port=peer_port)
    return near, far
