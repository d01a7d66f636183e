"""What a queue pair's completion queue says went wrong, read without taking anything from it.

Leans on device and layout. Kernels look at their CQ only when they need room, and a receiver waits for what a broken
sender never sends: whoever waits for both looks here.
"""

from __future__ import annotations

import numpy as np

from rdmakit.device import QP
from rdmakit.layout import ERR_CQE, CqeOpcode, Syndrome

__all__ = ["first_error"]


def first_error(qp: QP) -> tuple[int, int] | None:
    """(syndrome, WQE index) of the first request of `qp` that failed by itself, as its ring still shows it; else None.

    Those that were flushed behind it, and queue pairs that were put into ERR, have no request of their own to blame.
    """
    ring = np.frombuffer(qp.send_cq.view().tobytes(), ERR_CQE)
    bad = ring[(ring["op_own"] >> 4 == CqeOpcode.REQ_ERR) & (ring["syndrome"] != Syndrome.WR_FLUSH_ERR)]
    return (int(bad[0]["syndrome"]), int(bad[0]["wqe_counter"])) if len(bad) else None
