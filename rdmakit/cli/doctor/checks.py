"""All checks, in the order in which they are looked at: what later ones need comes first. And how they are run.

Leans on every module of checks.
"""

from __future__ import annotations

from collections.abc import Iterator

from rdmakit.cli.doctor import build, commands, doorbell, gpus, kernel, lossless, ports, spread
from rdmakit.cli.doctor.check import Answer, Check, Result, failed, skipped
from rdmakit.cli.doctor.machine import CAPTURED, Machine
from rdmakit.errors import NotAvailable, RdmakitError

__all__ = ["CHECKS", "examine"]

CHECKS: tuple[Check, ...] = (
    Check("python", "build", "Python and platform", build.python, live=True),
    Check("compiler", "build", "Compiler", build.compiler, live=True),
    Check("emulator", "build", "Emulator", build.emulator, live=True),
    Check("nvrtc", "build", "NVRTC without a GPU", build.nvrtc, live=True),
    Check("libibverbs", "build", "libibverbs and libmlx5", build.libibverbs, live=True),
    Check("modules", "kernel", "Kernel modules", kernel.modules),
    Check("uverbs", "kernel", "Device files", kernel.device_files),
    Check("memlock", "kernel", "Locked memory", kernel.memlock),
    Check("devices", "ports", "Devices", ports.devices),
    Check("state", "ports", "Port state", ports.port_state),
    Check("gids", "ports", "GIDs", ports.gids),
    Check("mtu", "ports", "MTU", ports.mtu),
    Check("pcie", "ports", "PCIe link", ports.pcie),
    Check("flow", "ports", "PFC and ECN", lossless.flow_control),
    Check("losses", "ports", "Losses", lossless.losses),
    Check("loopback", "ports", "Loopback", doorbell.loopback, live=True),
    Check("lag", "spread", "LAG mode", spread.lag),
    Check("steering", "spread", "Steering", spread.steering, live=True),
    Check("plan", "spread", "Planned spread", spread.plan),
    Check("driver", "gpu", "GPU driver", gpus.driver),
    Check("cuda", "gpu", "CUDA versions", gpus.cuda, live=True),
    Check("peers", "gpu", "NVLink and peer access", gpus.peers, live=True),
    Check("distance", "gpu", "Distance to NICs", gpus.distance),
    Check("iommu", "gpu", "IOMMU", kernel.iommu),
    Check("peermem", "gpudirect", "GPU memory for NICs", kernel.gpu_memory),
    Check("gpu-mr", "gpudirect", "GPU memory registered", doorbell.memory_registration, live=True),
    Check("override", "gpudirect", "PeerMappingOverride", kernel.register_mapping),
    Check("devx", "gpudirect", "Commands to the device", commands.devx, live=True),
    Check("doorbell", "gpudirect", "Doorbell mapping", doorbell.register, live=True),
)


def _look(check: Check, machine: Machine) -> Answer:
    if check.live and machine.asked is None:
        return skipped(CAPTURED)
    try:
        return check.look(machine)
    except NotAvailable as error:
        return skipped(doorbell.why(error))
    except RdmakitError as error:
        return failed(doorbell.why(error), error.remedy or "")
    except OSError as error:
        return skipped(f"cannot be read: {error}")


def examine(machine: Machine) -> Iterator[Result]:
    """Every check's result, one after the other as they are done."""
    for check in CHECKS:
        yield Result(check, _look(check, machine))
