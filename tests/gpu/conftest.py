"""GPU tests share the rigs of the any-backend tests; they skip where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Programs: they want torch, or a GPU, at once.
collect_ignore = ["device_hosts_program.py", "internode_program.py", "normal_on_warps.py"]
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "any"))


@pytest.fixture(scope="session", autouse=True)
def device():
    from rdmakit.errors import NotAvailable
    from rdmakit.gpu.cuda import cupy

    try:
        cupy()
    except NotAvailable as error:
        pytest.skip(str(error))
