"""Whom a check asks what files do not tell: libibverbs, CUDA through CuPy, NVML, a command. One seam, where tests
stand in for machines.

Leans on verbs and gpu, each imported when asked. All may raise NotAvailable and the other typed errors.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

__all__ = ["Asked"]

_SECONDS = 10.0


class Asked:
    """The real ones."""

    def libraries(self) -> dict[str, Any]:
        """Which libibverbs and libmlx5 have been loaded, and what they lack."""
        from rdmakit.device.lifetime import typed_refusal
        from rdmakit.verbs import _verbs

        with typed_refusal("loading libibverbs"):
            return dict(_verbs.libraries())

    def device_names(self) -> tuple[list[str], str]:
        """What libibverbs lists, and why it cannot."""
        from rdmakit.verbs.backend import device_names

        return device_names()

    def open(self, name: str) -> Any:
        """The device as a Context of rdmakit.device."""
        import rdmakit

        return rdmakit.open(name)

    def raw(self, name: str) -> Any:
        """The device as a Context of libibverbs, for what the objects on top do not show."""
        from rdmakit.device.lifetime import typed_refusal
        from rdmakit.verbs import _verbs

        with typed_refusal("opening the device", device=name):
            return _verbs.Context(name)

    def cuda(self) -> Any:
        """rdmakit.gpu.probe, once CuPy and a GPU are known to be here."""
        from rdmakit.gpu import probe
        from rdmakit.gpu.cuda import cupy

        cupy()
        return probe

    def nvml(self) -> Any:
        """rdmakit.gpu.nvml's report of this machine's GPUs and their links."""
        from rdmakit.gpu.nvml import read_gpus

        return read_gpus()

    def command(self, *words: str) -> str | None:
        """What a command prints; None where it is missing, fails, or does not end."""
        if shutil.which(words[0]) is None:
            return None
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None
