"""Checks of GPUs: the driver, CUDA's parts among each other, NVLink and peer access, how far GPUs are from NICs.

Leans on check, machine, gpu (through the machine), model (which NIC for which GPU).
"""

from __future__ import annotations

import re

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.ports import counted
from rdmakit.errors import NotAvailable
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import DISTANCES

__all__ = ["cuda", "distance", "driver", "peers"]

_DRIVER = 12040  # cuFuncGetParamInfo, which launches need
_NEAR = DISTANCES.index("PXB")  # what NCCL takes for GPUDirect RDMA by default


def driver(machine: Machine) -> Answer:
    """The NVIDIA driver has the GPUs that the PCI bus shows."""
    files = [name for name in sysfs.names(machine.root / "dev") if re.fullmatch(r"nvidia\d+", name)]
    count = len(machine.topology.gpus) or len(files)
    version = re.search(r"(?:Kernel Module[^\n]*?)\s+(\d+\.\d+(?:\.\d+)?)", machine.read("proc/driver/nvidia/version"))
    if machine.no_gpu():
        if "gpu" in machine.needed:
            return failed("no NVIDIA GPU", "pass one into this container: docker run --gpus all")
        return skipped("no NVIDIA GPU: the emulator needs none")
    if (machine.root / "dev/dxg").exists():
        return passed("WSL2's /dev/dxg: the driver is Windows's")
    if version is None and not machine.topology.gpus:
        return skipped(f"{', '.join(files)} in /dev, and neither /sys nor /proc of this container tells more")
    if version is None:
        return failed(
            f"{counted(count, 'GPU')} on the PCI bus and no driver in /proc/driver/nvidia",
            "install the NVIDIA driver; modprobe nvidia; in a container --gpus all",
        )
    kind = "open" if "Open Kernel Module" in machine.read("proc/driver/nvidia/version") else "closed"
    said = f"{version.group(1)}, {kind} kernel modules, {counted(count, 'GPU')}"
    return passed(said, driver=version.group(1), modules=kind, gpus=count)


def _release(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def cuda(machine: Machine) -> Answer:
    """CuPy, its CUDA runtime and its NVRTC fit the driver."""
    try:
        probe = machine.ask.cuda()
        found = probe.versions()
    except NotAvailable as error:
        if machine.no_gpu():
            return skipped(machine.no_gpu())
        return warned(f"{error.what}: kernels cannot be launched", error.remedy or "")
    nvrtc = found.nvrtc[0] * 1000 + found.nvrtc[1] * 10
    facts = {"driver": found.driver, "runtime": found.runtime, "nvrtc": nvrtc, "cupy": found.cupy,
             "gpus": list(found.gpus), "capability": list(found.capability)}  # fmt: skip
    runtime, driver_cuda = _release(found.runtime), _release(found.driver)
    parts = f"CuPy {found.cupy}, CUDA {runtime}, NVRTC {_release(nvrtc)}, driver's {driver_cuda}"
    if found.driver < _DRIVER:
        return failed(f"{parts}: too old", "a driver of CUDA 12.4 or newer (550)", **facts)
    if max(found.runtime, nvrtc) // 1000 > found.driver // 1000:
        return failed(f"{parts}: the driver knows no such CUDA", "a newer driver, or pip install 'rdmakit[gpu-cuda12]'",
                      **facts)  # fmt: skip
    return passed(parts, **facts)


def peers(machine: Machine) -> Answer:
    """Every GPU of the host reaches every other's memory, by NVLink or PCIe."""
    if machine.no_gpu():
        return skipped(machine.no_gpu())
    links = None
    try:
        links = machine.ask.nvml()
        peer = dict(links.peer)
        count = len(links.gpus)
    except NotAvailable as nvml:
        try:
            access = machine.ask.cuda().peer_access()
        except NotAvailable as error:
            return skipped(f"{nvml.what} and {error.what}: pip install nvidia-ml-py")
        peer = {pair: "reachable" if reached else "none" for pair, reached in access.items()}
        count = len({a for a, _ in access}) or 1
    if count < 2:
        return skipped("one GPU: no peer")
    facts = {"peer": {f"{a}-{b}": how for (a, b), how in peer.items()}}
    waiting = [gpu for gpu in links.gpus if gpu.fabric] if links is not None else []
    if waiting:
        return failed(f"the NVSwitch fabric of GPU {waiting[0].index} is {waiting[0].fabric}",
                      "systemctl start nvidia-fabricmanager (its version is the driver's)", **facts)  # fmt: skip
    cut = [pair for pair, how in peer.items() if how == "none"]
    if cut:
        pairs = ", ".join(f"{a}→{b}" for a, b in cut[:4]) + (" …" if len(cut) > 4 else "")
        return warned(f"no peer access between GPUs {pairs}", "nvidia-smi topo -p2p r says why; such ranks meet "
                      "through NICs", **facts)  # fmt: skip
    kinds = set(peer.values())
    up = {gpu.nvlinks for gpu in links.gpus} if links is not None else set()
    if kinds == {"nvlink"} and len(up) > 1:
        return warned(f"GPUs have {min(up)} to {max(up)} NVLinks up", "nvidia-smi nvlink -s names those that are down",
                      **facts)  # fmt: skip
    named = {"nvlink": "NVLink", "pcie": "PCIe", "reachable": "peer access"}
    links_said = f", {max(up)} links a GPU" if kinds == {"nvlink"} else ""
    how = " or ".join(sorted(named[kind] for kind in kinds))
    return passed(f"{count} GPUs reach each other by {how}{links_said}", **facts)


def distance(machine: Machine) -> Answer:
    """Each GPU has a NIC of its own behind the same PCIe switch, or nearly."""
    from rdmakit.model.nics import assign_nics

    topology = machine.topology
    nics = [nic for nic in topology.nics if nic.address]
    if not topology.gpus or not nics:
        return skipped(machine.no_gpu() or machine.no_rdma() or "no NIC with a place on the PCI bus")
    if max(len(topology.gpus), len(nics)) > 16:
        return skipped(f"{len(topology.gpus)} GPUs and {len(nics)} NICs are more than are assigned here")
    costs = [[DISTANCES.index(topology.between(gpu, nic)) for nic in nics] for gpu in topology.gpus]
    chosen = assign_nics(costs)
    facts = {gpu.name: {"nic": nics[at].name, "distance": DISTANCES[costs[i][at]]}
             for i, (gpu, at) in enumerate(zip(topology.gpus, chosen, strict=True))}  # fmt: skip
    far = [(gpu.name, nics[at].name, DISTANCES[costs[i][at]])
           for i, (gpu, at) in enumerate(zip(topology.gpus, chosen, strict=True)) if costs[i][at] > _NEAR]  # fmt: skip
    if far:
        gpu, nic, how = far[0]
        others = f", and {len(far) - 1} more" if len(far) > 1 else ""
        return warned(f"{gpu} to {nic} is {how}{others}: data crosses the CPU", "GPU and NIC into slots of one PCIe "
                      "switch; a virtual machine must be shown the real tree", **facts)  # fmt: skip
    kinds = sorted({entry["distance"] for entry in facts.values()}, key=DISTANCES.index)
    return passed(f"every GPU has a NIC at {' or '.join(kinds)}", **facts)
