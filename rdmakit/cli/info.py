"""`rdmakit info`: what this machine has for rdmakit, and what to do about what it lacks.

Leans on verbs.topology. It looks and asks nobody: files under /sys and /proc, the installed packages' metadata, the
compiler's own version line. Nothing heavy is imported and no driver is loaded: it answers at once anywhere. Only with
--topology NVML is asked for links between GPUs. `rdmakit doctor` tries things. --root looks at the files of another
machine, as `rdmakit doctor --capture` copies them.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.gpu.nvml import NvmlReport

__all__ = ["Finding", "add_parser", "findings", "main", "run"]

EMULATED = ("emulator", "compiler")  # the parts without which nothing runs anywhere


@dataclass(frozen=True)
class Finding:
    """One part of a machine: `present` or not, `what` was found, and `remedy` if something is to be done."""

    part: str
    present: bool
    what: str
    remedy: str = ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _version(*packages: str) -> str:
    """`name version` of the first of `packages` that is installed, or ''."""
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _cpu(root: Path) -> Finding:
    lines = _read(root / "proc/cpuinfo").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "unnamed")
    machine = platform.machine()
    supported = platform.system() == "Linux" and machine in ("x86_64", "aarch64")
    return Finding(
        "cpu", supported, f"{name}, {os.cpu_count()} threads, {platform.system()} {machine}",
        "" if supported else "the emulator needs Linux on x86-64 or aarch64: a container, WSL2 or Colab",
    )  # fmt: skip


def _compiler() -> Finding:
    command = os.environ.get("RDMAKIT_CXX", "g++")  # as the CPU runner has it
    found = shutil.which(command)
    remedy = "apt-get install g++ (Fedora: dnf install gcc-c++), or name another compiler in RDMAKIT_CXX"
    if found is None:
        return Finding("compiler", False, f"no {command}", remedy)
    try:
        asked = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("compiler", False, f"{found} does not answer: {error}", remedy)
    first = (asked.stdout or asked.stderr or found).splitlines()[0]
    return Finding("compiler", asked.returncode == 0, first, "" if asked.returncode == 0 else remedy)


def _emulator() -> Finding:
    if importlib.util.find_spec("rdmakit.emu") and importlib.util.find_spec("rdmakit.emu._world"):
        return Finding("emulator", True, 'built: rdmakit.open("emu:…")')
    return Finding("emulator", False, "rdmakit.emu._world is not built", "make demo, or pip install -e .")


def _gpu(root: Path) -> Finding:
    models: dict[str, list[str]] = {}
    for gpu in _entries(root / "proc/driver/nvidia/gpus"):
        lines = (line.split(":", 1) for line in _read(gpu / "information").splitlines() if ":" in line)
        facts = {name.strip(): value.strip() for name, value in lines}
        models.setdefault(facts.get("Model", "NVIDIA GPU"), []).append(gpu.name)
    if models:
        each = (f"{model} at {', '.join(places)}" for model, places in models.items())
        return Finding("gpu", True, "; ".join(each))
    if (root / "dev/nvidia0").exists() or (root / "dev/dxg").exists():
        return Finding("gpu", True, "an NVIDIA device file (/dev/nvidia0 or WSL2's /dev/dxg)")
    return Finding("gpu", False, "no NVIDIA GPU", "emu: devices need none; on a GPU host install its driver")


def _cupy() -> Finding:
    found = _version("cupy-cuda13x", "cupy-cuda12x", "cupy")
    remedy = "" if found else "pip install 'rdmakit[gpu]' (CUDA 12: 'rdmakit[gpu-cuda12]')"
    return Finding("cupy", bool(found), found or "not installed", remedy)


def _nvrtc() -> Finding:
    found = [_version("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"), _version("cuda-bindings")]
    complete = all(found)
    return Finding(
        "nvrtc", complete, ", ".join(filter(None, found)) or "not installed",
        "" if complete else "pip install 'rdmakit[dev]': compiles for GPUs without having one",
    )  # fmt: skip


def _libibverbs() -> Finding:
    found = ctypes.util.find_library("ibverbs")
    return Finding(
        "libibverbs", found is not None, found or "not installed",
        "" if found else "apt-get install libibverbs1 ibverbs-providers (Fedora: dnf install libibverbs)",
    )  # fmt: skip


def _sys(root: Path) -> Path:
    from rdmakit.verbs import sysfs

    return sysfs.of_machine(root)


def _rdma(root: Path) -> list[Finding]:
    devices = []
    for device in _entries(_sys(root) / "class/infiniband"):
        ports = [
            f"port {port.name} {_read(port / 'link_layer')} {_read(port / 'state').split(':')[-1].strip()} "
            f"{_read(port / 'rate')}"
            for port in _entries(device / "ports")
        ]
        try:
            driver = (device / "device/driver").resolve(strict=True).name
        except OSError:
            driver = "no driver"
        devices.append(Finding("rdma", True, f"{device.name} ({driver}): {'; '.join(ports) or 'no ports'}"))
    remedy = "emu: devices need none; on an RDMA host load its driver"
    return devices or [Finding("rdma", False, "no RDMA device", remedy)]


def findings(root: str | Path = "/") -> list[Finding]:
    """All parts that rdmakit can use, present or not. `root` is where /sys, /proc and /dev are looked for.

    >>> [finding.part for finding in findings("/nowhere")]
    ['cpu', 'compiler', 'emulator', 'gpu', 'cupy', 'nvrtc', 'libibverbs', 'rdma']
    """
    at = Path(root)
    machine = [_cpu(at), _compiler(), _emulator(), _gpu(at), _cupy(), _nvrtc(), _libibverbs()]
    return [*machine, *_rdma(at)]


def gpu_links() -> NvmlReport | None:
    """Who reaches whom among GPUs, by NVML; None where nvidia-ml-py or the driver is missing."""
    from rdmakit.errors import NotAvailable
    from rdmakit.gpu.nvml import read_gpus

    try:
        return read_gpus()
    except NotAvailable:
        return None


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object: ok (emulated devices work here), figures (1 or 0 a part), config, findings, topology."""
    from rdmakit.verbs.topology import read_topology

    found = findings(args.root)
    parts = dict.fromkeys(finding.part for finding in found)
    figures = {part: sum(f.present for f in found if f.part == part) for part in parts}
    return {
        "ok": all(figures[part] for part in EMULATED),
        "figures": {**figures, "cpu_threads": os.cpu_count() or 0},
        "config": {
            "rdmakit": _version("rdmakit").removeprefix("rdmakit "),
            "python": platform.python_version(),
            "numpy": _version("numpy").removeprefix("numpy "),
            "platform": platform.platform(),
            "root": str(args.root),
        },
        "findings": [asdict(finding) for finding in found],
        "topology": read_topology(_sys(Path(args.root))).to_dict(),
    }


def main(args: argparse.Namespace) -> int:
    """Print what is here, or with `args.json` one JSON object; returns the exit status."""
    if args.root != "/":
        from rdmakit.verbs import sysfs

        sysfs.require_machine(Path(args.root))
    if args.topology and not args.json:
        from rdmakit.verbs.topology import read_topology

        print(read_topology(_sys(Path(args.root))).draw())
        links = gpu_links() if args.root == "/" else None
        if links is not None and links.gpus:
            print(links.draw())
        return 0
    result = run(args)
    if args.json:
        if args.topology:
            links = gpu_links() if args.root == "/" else None
            result["gpu_links"] = links.to_dict() if links is not None else None
        print(json.dumps(result))
        return 0 if result["ok"] else 1
    config = result["config"]
    installed = config["rdmakit"] or "(not installed)"
    print(f"rdmakit {installed}, Python {config['python']}, NumPy {config['numpy']}")
    for finding in result["findings"]:
        print(f"  {'yes' if finding['present'] else 'no ':3s} {finding['part']:11s} {finding['what']}")
        if finding["remedy"]:
            print(f"      {'':11s} → {finding['remedy']}")
    return 0 if result["ok"] else 1


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `info` to an argparse subparsers object; sets `func` to `main`, which returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info",
        help="what this machine has, and what to do about what it lacks",
        description="Looks for what rdmakit can use. Exit status 0 when emulated devices work here.",
    )
    parser.add_argument("--topology", action="store_true", help="draw how far GPUs, NICs and NUMA nodes are apart")
    parser.add_argument("--root", default="/", help="where /sys, /proc and /dev are looked for (a captured tree)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=main)
    return parser
