"""Checks of what the kernel grants: modules, device files, locked memory, GPU memory for NICs, registers for GPUs.

Leans on check, machine. Sources: Linux Documentation/ABI/stable/sysfs-class-infiniband, man 7 capabilities,
drivers/infiniband/core/umem.c (CAP_IPC_LOCK lifts the limit), NVIDIA's driver README (GPUDirect RDMA, NVreg options).
"""

from __future__ import annotations

import os
import re

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned
from rdmakit.cli.doctor.machine import Machine
from rdmakit.verbs import sysfs

__all__ = ["device_files", "gpu_memory", "iommu", "memlock", "modules", "register_mapping"]

_EMULATED = "emulated NICs: a preloaded library answers instead of the kernel"
_CAP_IPC_LOCK = 14
_LITTLE = 64 << 20  # a Buffer of DeepEP's and its queues take more than this
_DMABUF_KERNEL = (5, 12)  # IB_USER_VERBS dma-buf MRs
_OVERRIDE = re.compile(r"(?:^|;)\s*PeerMappingOverride=(?:0x)?0*1\s*(?:;|$)")
_OPTIONS = 'options nvidia NVreg_EnableStreamMemOPs=1 NVreg_RegistryDwords="PeerMappingOverride=1;"'


def modules(machine: Machine) -> Answer:
    """ib_uverbs, and the driver of the NICs that are plugged in."""
    if machine.emulated:
        return skipped(_EMULATED)
    if not machine.mellanox and not machine.nics:
        return skipped("no RDMA device and no ConnectX on the PCI bus")
    if not (machine.sys / "module").is_dir():
        return skipped("no /sys/module in this tree")
    wanted = ["ib_uverbs", *(["mlx5_core", "mlx5_ib"] if machine.mellanox else [])]
    missing = [name for name in wanted if not machine.module(name)]
    if missing:
        plugged = f"; ConnectX at {', '.join(machine.mellanox)}" if machine.mellanox else ""
        return failed(f"{', '.join(missing)} not loaded{plugged}", f"modprobe {' '.join(missing)}", missing=missing)
    return passed(f"{', '.join(wanted)} loaded", modules=wanted)


def device_files(machine: Machine) -> Answer:
    """/dev/infiniband/uverbs*: one for each device, and this process may open it."""
    if machine.emulated:
        return skipped(_EMULATED)
    if not machine.nics:
        return skipped(machine.no_rdma())
    if not (machine.root / "dev").is_dir():
        return skipped("no /dev in this tree")
    at = machine.root / "dev/infiniband"
    files = [name for name in sysfs.names(at) if name.startswith("uverbs")]
    if not files:
        return failed(
            "no /dev/infiniband/uverbs*: this container does not have them",
            "docker run --device /dev/infiniband (Kubernetes: an RDMA device plugin); on the host modprobe ib_uverbs",
        )
    closed = [name for name in files if not os.access(at / name, os.R_OK | os.W_OK)]
    if closed:
        return failed(
            f"no right to open {', '.join(closed)}", "chmod 666 /dev/infiniband/uverbs*, as rdma-core's udev rules do",
            closed=closed,
        )  # fmt: skip
    if len(files) < len(machine.nics):
        return warned(
            f"{len(files)} device files for {len(machine.nics)} devices", "pass all of /dev/infiniband to the container"
        )
    return passed(f"{len(files)} in /dev/infiniband, open to this process", files=files)


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << scale:
            return f"{nbytes / (1 << scale):.4g} {unit}"
    return f"{nbytes} B"


def memlock(machine: Machine) -> Answer:
    """How much memory this process may pin; CAP_IPC_LOCK lifts the limit."""
    found = re.search(r"^Max locked memory\s+(\S+)", machine.read("proc/self/limits"), re.MULTILINE)
    if found is None:
        return skipped("/proc/self/limits does not say")
    if found.group(1) == "unlimited":
        return passed("unlimited", limit=None)
    limit = int(found.group(1))
    effective = re.search(r"^CapEff:\s+([0-9a-f]+)", machine.read("proc/self/status"), re.MULTILINE)
    facts = {"limit": limit}
    if effective and int(effective.group(1), 16) >> _CAP_IPC_LOCK & 1:
        return passed(f"{_size(limit)}, lifted by CAP_IPC_LOCK", **facts)
    if not machine.nics or machine.emulated:
        return skipped(f"{_size(limit)}; no real RDMA device that would pin memory", **facts)
    remedy = "ulimit -l unlimited; for good in /etc/security/limits.d, LimitMEMLOCK=infinity, or --ulimit memlock=-1"
    if limit < _LITTLE:
        return failed(f"only {_size(limit)} may be pinned: queues fit, buffers do not", remedy, **facts)
    return warned(f"{_size(limit)} may be pinned in all", remedy, **facts)


def _kernel_release(machine: Machine) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", machine.read("proc/sys/kernel/osrelease"))
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def gpu_memory(machine: Machine) -> Answer:
    """A way for NICs to reach GPU memory: nvidia_peermem, or dma-buf by the open kernel modules."""
    if machine.no_gpu() or machine.no_rdma():
        return skipped(machine.no_gpu() or machine.no_rdma())
    if machine.emulated:
        return skipped("emulated NICs reach memory of the host only")
    peermem = next((name for name in ("nvidia_peermem", "nv_peer_mem") if machine.module(name)), "")
    opened = "Open Kernel Module" in machine.read("proc/driver/nvidia/version")
    release = _kernel_release(machine)
    dmabuf = opened and release >= _DMABUF_KERNEL
    facts = {"peermem": peermem, "dmabuf": dmabuf}
    ways = [*([peermem] if peermem else []), *(["dma-buf by the open kernel modules"] if dmabuf else [])]
    if ways:
        return passed(" and ".join(ways), **facts)
    why = "closed kernel modules" if release >= _DMABUF_KERNEL else f"Linux {release[0]}.{release[1]}"
    return failed(
        f"neither nvidia_peermem nor dma-buf ({why}): NICs cannot reach GPU memory", "modprobe nvidia-peermem", **facts
    )


def register_mapping(machine: Machine) -> Answer:
    """PeerMappingOverride, which lets CUDA map a NIC's register for kernels."""
    if machine.no_gpu() or machine.no_rdma():
        return skipped(machine.no_gpu() or machine.no_rdma())
    if machine.emulated:
        return skipped("emulated NICs: their registers are memory")
    params = machine.read("proc/driver/nvidia/params")
    if not params:
        return skipped("/proc/driver/nvidia/params cannot be read here (a container hides it, WSL2 has none)")
    dwords = re.search(r'^RegistryDwords:\s*"(.*)"', params, re.MULTILINE)
    overridden = dwords is not None and _OVERRIDE.search(dwords.group(1))
    stream = re.search(r"^EnableStreamMemOPs:\s*(\d+)", params, re.MULTILINE)
    enabled = stream is not None and int(stream.group(1)) == 1
    facts = {"PeerMappingOverride": bool(overridden), "EnableStreamMemOPs": enabled}
    if overridden:
        return passed("PeerMappingOverride=1" + (", EnableStreamMemOPs=1" if enabled else ""), **facts)
    return warned(
        "PeerMappingOverride is not set: GPUs may be refused the doorbell, and a CPU proxy rings it",
        f"in /etc/modprobe.d/nvidia.conf: {_OPTIONS}; then update-initramfs -u (dracut -f), reboot",
        **facts,
    )


def iommu(machine: Machine) -> Answer:
    """Whether GPUs and NICs are behind a translating IOMMU, through which peer-to-peer traffic makes a detour."""
    devices = [gpu.address for gpu in machine.topology.gpus] + [nic.address for nic in machine.nics if nic.address]
    if machine.no_gpu() or not devices:
        return skipped(machine.no_gpu() or machine.no_rdma() or "no PCI devices to look at")
    kinds = {address: sysfs.read(machine.sys / "bus/pci/devices" / address / "iommu_group/type") for address in devices}
    translated = sorted(address for address, kind in kinds.items() if kind.startswith("DMA"))
    if translated:
        return warned(
            f"{len(translated)} of {len(devices)} GPUs and NICs are behind a translating IOMMU: peer-to-peer is slow, "
            "or fails",
            "boot with iommu=pt (and amd_iommu=on or intel_iommu=on where virtual machines need it)",
            translated=translated,
        )
    return passed("no translation between GPUs and NICs", translated=[])
