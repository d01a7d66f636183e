"""Checks of what every machine needs, laptops too: Python, a compiler that compiles, the emulator, NVRTC, libibverbs.

Leans on check, machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned
from rdmakit.cli.doctor.machine import Machine
from rdmakit.errors import CompileError, NotAvailable

__all__ = ["compiler", "emulator", "libibverbs", "nvrtc", "python"]

_MACHINES = ("x86_64", "aarch64")
_PROBE = """#include <rdmakit/warp.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL probe(u64* out, u64 value) { if (lane_id() == 0) out[0] = value; }
"""


def python(machine: Machine) -> Answer:
    """The interpreter, the platform, a virtual environment, headers to build with."""
    del machine
    where, kind = f"{platform.system()} {platform.machine()}", "virtual environment" if in_venv() else "no venv"
    said = f"{platform.python_version()}, {kind}, {where}"
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return failed(said, "run it on Linux, x86-64 or aarch64: a container, WSL2 or Colab")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return warned(f"{said}, no headers", "apt-get install python3-dev (Fedora: python3-devel), or no rebuild works")
    return passed(said, python=platform.python_version())


def in_venv() -> bool:
    return sys.prefix != sys.base_prefix


def compiler(machine: Machine) -> Answer:
    """g++ compiles a kernel against the device headers, as the CPU runner has it done."""
    del machine
    from rdmakit.emu.compiler import build, compiler_version, find_compiler, recipe
    from rdmakit.emu.source import prepare

    try:
        path = find_compiler()
        version = compiler_version(path, Path(path).stat().st_mtime_ns)
        with tempfile.TemporaryDirectory(prefix="rdmakit-doctor-") as folder:
            build(recipe(prepare(_PROBE, "probe.cu"), policy=0, lanes=1, preempted=False), Path(folder) / "probe.so")
    except NotAvailable as error:
        return failed(f"{error.what}: {error.value}", error.remedy or "")
    except CompileError as error:
        return failed(f"device code does not compile: {error.rule}", "g++ 9 or newer, or another one in RDMAKIT_CXX")
    return passed(f"{version} compiles device code", compiler=version)


def emulator(machine: Machine) -> Answer:
    """The compiled extensions: the CPU world, and the library that stands in for the kernel."""
    del machine
    if importlib.util.find_spec("rdmakit.emu._world") is None:
        return failed("rdmakit.emu._world is not built", "make demo, or pip install -e .")
    from rdmakit.emu.uverbs import library

    try:
        library()
    except NotAvailable as error:
        return warned(f"built, but {error.what}", error.remedy or "")
    return passed('built: rdmakit.open("emu"), rdmakit connectx')


def nvrtc(machine: Machine) -> Answer:
    """NVRTC's wheels: device code compiles for GPUs on machines without one."""
    del machine
    found = {}
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "cuda-bindings"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "cuda-bindings" not in found or len(found) == 1:
        return skipped("no nvidia-cuda-nvrtc and cuda-bindings, which tests/compile needs: pip install 'rdmakit[dev]'")
    return passed(", ".join(f"{name} {version}" for name, version in found.items()), **found)


def libibverbs(machine: Machine) -> Answer:
    """libibverbs and libmlx5 are loaded, and have the calls that are used where they are there."""
    here = bool(machine.nics or machine.mellanox)
    try:
        found = machine.ask.libraries()
    except NotAvailable as error:
        if not here:
            return skipped(f"{error.what}, and no RDMA device that would need it")
        return failed(f"{error.what}: {error.rule}", error.remedy or "")
    mlx5 = machine.mellanox or any(nic.driver.startswith("mlx5") for nic in machine.nics) or machine.emulated
    if mlx5 and not found["mlx5"]:
        return warned(
            f"libmlx5 is missing ({found['mlx5_missing']}): no queues that kernels post to, proxied ones only",
            "apt-get install ibverbs-providers (Fedora: dnf install libibverbs)",
        )
    if found["missing"]:
        return warned(
            f"too old for {', '.join(found['missing'])}", "a newer rdma-core; what needs these is refused by name",
            missing=found["missing"],
        )  # fmt: skip
    names = [Path(found[name]).name for name in ("ibverbs", "mlx5") if found[name]]
    return passed(", ".join(names), libraries=names)
