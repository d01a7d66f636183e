"""Memory of the host that kernels write: a report lies there, so that the host can read it while a kernel still runs.

Leans on arena and device.
"""

from __future__ import annotations

import numpy as np

from rdmakit.device.report import REPORT, Report
from rdmakit.gpu.arena import Arena

__all__ = ["pinned_report"]


def pinned_report() -> Report:
    """A `Report` in page-locked memory of the host, at the same address for GPUs and host (unified addressing).

    Give its `address` to kernels by `Watch.report`; it can be read at any time, without synchronisation. NotAvailable
    without CuPy and a GPU.
    """
    return Report(Arena(REPORT.itemsize).array(REPORT.itemsize, np.uint8, 8))
