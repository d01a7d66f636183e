"""What NVML says of this machine's GPUs: names, driver, NVLinks, who reaches whom. Nothing is allocated on a GPU.

Leans on nvidia-ml-py (`pynvml`), NVIDIA's own binding, which is imported when asked. GPUs are in NVML's order, which is
that of PCI addresses. Source: NVML API Reference, "NvLink Methods" and nvmlDeviceGetP2PStatus.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rdmakit.errors import NotAvailable

__all__ = ["GpuLinks", "NvmlReport", "read_gpus"]

_READ, _NVLINK = 0, 2  # nvmlGpuP2PCapsIndex_t; pynvml's own constant for reads is a tuple by mistake
_FABRIC = {1: "not started", 2: "in progress"}  # NVML_GPU_FABRIC_STATE_*; 0: not of a fabric, 3: completed


@dataclass(frozen=True)
class GpuLinks:
    """One GPU; `nvlinks` that are up. `fabric`: the state of an NVSwitch fabric that is not ready, "" otherwise."""

    index: int
    name: str
    address: str
    nvlinks: int
    fabric: str = ""


@dataclass(frozen=True)
class NvmlReport:
    """`driver` as text, `cuda` as NVML counts it (12080 is 12.8); `peer[(a, b)]`: "nvlink", "pcie" or "none"."""

    driver: str
    cuda: int
    gpus: tuple[GpuLinks, ...]
    peer: dict[tuple[int, int], str] = field(default_factory=dict)

    def draw(self) -> str:
        """A table of who reaches whom, and a line a GPU.

        >>> two = (GpuLinks(0, "NVIDIA H200", "0000:17:00.0", 18), GpuLinks(1, "NVIDIA H200", "0000:3d:00.0", 18))
        >>> print(NvmlReport("580.65", 13000, two, {(0, 1): "nvlink", (1, 0): "nvlink"}).draw())
                GPU0    GPU1
        GPU0    -       NVLINK  NVIDIA H200 at 0000:17:00.0, 18 NVLinks
        GPU1    NVLINK  -       NVIDIA H200 at 0000:3d:00.0, 18 NVLinks
        """
        lines = ["        " + "".join(f"GPU{gpu.index}".ljust(8) for gpu in self.gpus).rstrip()]
        for gpu in self.gpus:
            cells = (self.peer.get((gpu.index, other.index), "-").upper() for other in self.gpus)
            fabric = f", fabric {gpu.fabric}" if gpu.fabric else ""
            what = f"{gpu.name} at {gpu.address}, {gpu.nvlinks} NVLinks{fabric}"
            lines.append(f"GPU{gpu.index}".ljust(8) + "".join(cell.ljust(8) for cell in cells) + what)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `peer[GPU name][GPU name]`."""
        names = {gpu.index: f"GPU{gpu.index}" for gpu in self.gpus}
        peer = {names[a]: {names[b]: self.peer[a, b] for b in names if (a, b) in self.peer} for a in names}
        return {"driver": self.driver, "cuda": self.cuda, "gpus": [asdict(gpu) for gpu in self.gpus], "peer": peer}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _asked(nvml: Any, call: str, *arguments: Any, otherwise: Any) -> Any:
    """A call that older drivers or GPUs without the feature refuse."""
    function = getattr(nvml, call, None)
    if function is None:
        return otherwise
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return otherwise


def _fabric(nvml: Any, handle: Any) -> str:
    made = getattr(nvml, "c_nvmlGpuFabricInfo_t", None)
    if made is None:
        return ""
    info = made()
    _asked(nvml, "nvmlDeviceGetGpuFabricInfo", handle, info, otherwise=None)
    return _FABRIC.get(int(info.state), "")


def _links(nvml: Any, index: int) -> GpuLinks:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    up = sum(
        bool(_asked(nvml, "nvmlDeviceGetNvLinkState", handle, link, otherwise=0))
        for link in range(nvml.NVML_NVLINK_MAX_LINKS)
    )
    # "00000000:17:00.0" of NVML is "0000:17:00.0" of sysfs.
    address = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()[-12:]
    return GpuLinks(index, _text(nvml.nvmlDeviceGetName(handle)), address, up, _fabric(nvml, handle))


def _reach(nvml: Any, a: Any, b: Any) -> str:
    for kind, index in (("nvlink", _NVLINK), ("pcie", _READ)):
        if _asked(nvml, "nvmlDeviceGetP2PStatus", a, b, index, otherwise=-1) == nvml.NVML_P2P_STATUS_OK:
            return kind
    return "none"


def read_gpus() -> NvmlReport:
    """NotAvailable where nvidia-ml-py or the driver's libnvidia-ml is missing."""
    try:
        import pynvml as nvml
    except ImportError as error:
        raise NotAvailable("no NVML", value=str(error), rule="nvidia-ml-py asks the driver",
                           remedy="pip install nvidia-ml-py") from None  # fmt: skip
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NotAvailable("NVML does not start", value=str(error), rule="an NVIDIA driver that is loaded",
                           remedy="install the driver; nvidia-smi says what is wrong with it") from None  # fmt: skip
    try:
        count = nvml.nvmlDeviceGetCount()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return NvmlReport(
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            cuda=int(_asked(nvml, "nvmlSystemGetCudaDriverVersion_v2", otherwise=0)),
            gpus=tuple(_links(nvml, index) for index in range(count)),
            peer={(a, b): _reach(nvml, handles[a], handles[b]) for a in range(count) for b in range(count) if a != b},
        )
    except nvml.NVMLError as error:
        raise NotAvailable("NVML does not answer", value=str(error), rule="a driver and a library of one version",
                           remedy="reboot after a driver update: nvidia-smi says the same") from None  # fmt: skip
    finally:
        nvml.nvmlShutdown()
