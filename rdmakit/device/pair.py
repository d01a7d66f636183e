"""Two queue pairs that are connected to each other: where an experiment starts when connecting is not what it
is about.

Leans on context, qp and errors.
"""

from __future__ import annotations

from typing import Any

from rdmakit.device.context import Context
from rdmakit.device.qp import QP
from rdmakit.errors import BadArgument

__all__ = ["connected_pair"]


def connected_pair(
    here: Context,
    there: Context,
    *,
    port: int = 1,
    peer_port: int | None = None,
    cq_entries: int = 256,
    beside: tuple[QP, QP] | None = None,
    **options: Any,
) -> tuple[QP, QP]:
    """A queue pair on each of two opened devices, connected from `port` to `peer_port` (the same number by
    default), in RTS.

    Each has a PD (`qp.pd`) and a CQ of `cq_entries` (`qp.send_cq`) of its own, which live as long as it does.
    `beside`: another pair between the same devices; this one shares its PDs, hence every memory registered there.
    `options` go to `PD.create_qp`. BadArgument for a pair of other devices.

    >>> import rdmakit
    >>> with rdmakit.open("emu:world=pair,host=0") as here, rdmakit.open("emu:world=pair,host=1") as there:
    ...     near, far = connected_pair(here, there)
    ...     near.state.name, far.state.name
    ('RTS', 'RTS')
    """
    if beside is not None and [qp.context for qp in beside] != [here, there]:
        raise BadArgument(
            "a pair of other devices",
            value=[qp.context.device.name for qp in beside],
            rule="domains of these two: " + ", ".join(context.device.name for context in (here, there)),
            remedy="pass a pair that was made between the same contexts, in the same order",
        )
    pds = [qp.pd for qp in beside] if beside is not None else [context.alloc_pd() for context in (here, there)]
    made = [
        pd.create_qp(context.create_cq(cq_entries), **options) for pd, context in zip(pds, (here, there), strict=True)
    ]
    near, far = made
    peer_port = port if peer_port is None else peer_port
    near.connect(far.endpoint(peer_port), port=port)
    far.connect(near.endpoint(port), port=peer_port)
    return near, far
