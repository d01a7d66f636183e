"""Running one command in the lab's virtual machine, with two hosts of two ports, and reading how it went.

Leans on kernel and initramfs. The processor is emulated (TCG): a KVM may be there, answer, and still not boot a kernel
of Debian's, so it is used only when asked for.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rdmakit.errors import BadArgument, DeviceFault, HangError, NotAvailable
from rdmakit.lab.initramfs import initramfs
from rdmakit.lab.kernel import Kernel, find_kernel

__all__ = ["HOSTS", "PACKAGES", "Outcome", "missing_programs", "run"]

# Program → the package of Debian that has it. The guest runs this machine's own ip and rdma.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "ip": "iproute2",
    "rdma": "iproute2",
}
PACKAGES = tuple(dict.fromkeys(PROGRAMS.values()))
HOSTS = ("none", "0", "1", "each")
# One boot of 40 ended in a panic: the kernel patches code that another processor is running, whose trap TCG delivers
# when the patch is over and nobody knows of it any more (Oops: int3 in ktime_get_update_offsets_now, QEMU 7.2).
_BOOTS = 3
_GUEST = Path(__file__).parent / "guest"
_KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "TERM", "VIRTUAL_ENV")
_KEPT_PREFIXES = ("PYTHON", "RDMAKIT_", "PYTEST_")
_KERNEL_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nokaslr audit=0 selinux=0 apparmor=0 tsc=reliable"
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, seconds from the last start until it began, seconds of all, the kernel."""

    status: int
    boot_s: float
    total_s: float
    kernel: str


def _program(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return Path(found) if found else None


def missing_programs() -> list[str]:
    """Packages of Debian that the lab needs and this machine lacks."""
    return list(dict.fromkeys(package for name, package in PROGRAMS.items() if _program(name) is None))


def _require() -> Kernel:
    missing = missing_programs()
    if missing:
        raise NotAvailable(
            "the lab needs programs that are not here",
            value=", ".join(missing),
            rule="qemu runs the machine, busybox starts it, kmod and iproute2 work inside",
            remedy=f"sudo apt-get install -y --no-install-recommends {' '.join(missing)}; then make lab-setup",
        )
    return find_kernel()


def _exports(folder: Path, kernel: Kernel, hosts: int) -> str:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    kept |= {
        "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        "HOME": str(Path.home()),
        "RDMAKIT_LAB": "1",
        "RDMAKIT_LAB_MODULES": str(kernel.modules),
        "RDMAKIT_LAB_FOLDER": str(folder),
        "RDMAKIT_LAB_HOSTS": str(hosts),
        "PYTHONDONTWRITEBYTECODE": "1",  # what it would write is lost with the machine
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items())


def _script(command: Sequence[str], host: str) -> str:
    """The command where it is wanted; on each host with the variables that torchrun sets, and the host in front."""
    line = shlex.join(command)
    if host == "none":
        return f"exec {line}\n"
    if host != "each":
        return f"exec ip netns exec h{host} {line}\n"
    ranks = "".join(
        f"RANK={rank} LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=10.9.0.1 MASTER_PORT=29500 PYTHONUNBUFFERED=1 "
        f"ip netns exec h{rank} {line} > >(sed -u 's/^/h{rank}: /') 2>&1 & pids+=($!)\n"
        for rank in (0, 1)
    )
    both = 'status=0\nfor pid in "${pids[@]}"; do wait $pid || status=$?; done\nwait\nexit $status\n'
    return f"pids=()\n{ranks}{both}"


def run(
    command: Sequence[str],
    *,
    host: str = "none",
    hosts: int = 2,
    out: Path | None = None,
    seconds: float = 600,
    memory_mib: int = 2048,
    cpus: int = 2,
    accelerator: str = "tcg",
    stdout: IO[str] | None = None,
) -> Outcome:
    """Start the machine, run `command` as its root in this folder, stop it; what it prints goes to `stdout`.

    `host`: "none" runs it outside both hosts (`ip netns exec h0 …` enters one), "0" or "1" on that host, "each" on
    both at once with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. `hosts` 0 leaves them out. `out`: a folder
    that the guest sees as /out; all else that it writes is lost. `seconds`: after that the machine is killed.
    A machine that dies before the command has begun is started anew, twice at most, and stderr says so. NotAvailable
    names the command that installs what is missing, HangError a machine that was killed, DeviceFault one that died.
    """
    if not command:
        raise BadArgument(
            "nothing to run", value="", rule="rdmakit lab -- COMMAND …",
            remedy="for example: rdmakit lab -- ip netns exec h0 ibv_devinfo",
        )  # fmt: skip
    if host not in HOSTS or (hosts == 0 and host != "none"):
        raise BadArgument("no such host", value=host, rule=", ".join(HOSTS), remedy="hosts are counted from 0")
    if accelerator not in ("tcg", "kvm"):
        raise BadArgument("no such accelerator", value=accelerator, rule="tcg, kvm", remedy="leave it out for tcg")
    kernel = _require()
    busybox, qemu = _program("busybox"), _program("qemu-system-x86_64")
    assert busybox is not None and qemu is not None
    with tempfile.TemporaryDirectory(prefix="rdmakit-lab-") as name:
        control = Path(name)
        shared = _folder_for(control / "out" if out is None else out.absolute())
        for script in ("boot.sh", "two_hosts.sh"):
            shutil.copy(_GUEST / script, control / script)
        (control / "environment").write_text(_exports(Path.cwd(), kernel, hosts))
        (control / "command").write_text(_script(command, host))
        start = initramfs(kernel, busybox, _GUEST / "init.sh")
        machine = _command_line(qemu, kernel, start, control, shared, memory_mib, cpus, accelerator)
        started = time.time()
        try:
            booted = _until_it_boots(machine, control, stdout, seconds)
        except subprocess.TimeoutExpired:
            raise HangError(
                "the lab's machine has been stopped", value=f"{seconds:.0f} s", rule="its time was up",
                remedy="give it more by --seconds, or see what it waited for", report=_console(control),
            ) from None  # fmt: skip
        return _outcome(control, kernel, booted, time.time() - started)


def _until_it_boots(machine: list[str], control: Path, stdout: IO[str] | None, seconds: float) -> float:
    """Start it, and anew if it dies before it has begun with the command; when it was started last."""
    end = time.monotonic() + seconds
    for others in reversed(range(_BOOTS)):
        began = time.time()
        subprocess.run(machine, stdin=subprocess.DEVNULL, stdout=stdout, timeout=end - time.monotonic(),
                       preexec_fn=_end_with_parent)  # fmt: skip
        if others == 0 or any((control / said).exists() for said in ("began", "problem")):
            break
        said = f"rdmakit lab: the machine died while it booted, and is started anew; {_console(control)}"
        print(said, file=sys.stderr, flush=True)
    return began


def _folder_for(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadArgument(
            "no folder for /out", value=out, rule=str(error), remedy="name one that is there, or can be made"
        ) from None
    return out


def _end_with_parent() -> None:
    """A launcher that is killed leaves no machine behind (man 2 prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _outcome(control: Path, kernel: Kernel, began: float, total: float) -> Outcome:
    status, mark, problem = control / "status", control / "began", control / "problem"
    if not mark.exists() or not status.exists() or problem.exists():
        said = problem.read_text().strip() if problem.exists() else "qemu has ended without a status"
        raise DeviceFault(
            "the lab's machine died", value=said, rule=_console(control),
            remedy="run it again; if it stays so: rdmakit lab --setup for a fresh kernel",
        )  # fmt: skip
    return Outcome(int(status.read_text()), mark.stat().st_mtime - began, total, kernel.version)


def _console(control: Path) -> str:
    """The end of what the kernel said."""
    console = control / "console"
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "the console's end: " + (" | ".join(line.strip() for line in lines[-5:] if line.strip()) or "nothing")


def _command_line(
    qemu: Path, kernel: Kernel, start: Path, control: Path, out: Path, memory_mib: int, cpus: int, accelerator: str
) -> list[str]:
    """qemu with two serial lines (the kernel's, the command's) and three shared folders; no disk, no network card."""
    processor = ("tcg,thread=multi", "max") if accelerator == "tcg" else ("kvm", "host")
    shares: list[str] = []
    folders = (("root", Path("/"), ",readonly=on,multidevs=remap"), ("control", control, ""), ("out", out, ""))
    for tag, path, rights in folders:
        escaped = str(path).replace(",", ",,")
        shares += ["-fsdev", f"local,id={tag},path={escaped},security_model=none{rights}"]
        shares += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    console = str(control / "console").replace(",", ",,")
    return [
        str(qemu), "-accel", processor[0], "-cpu", processor[1], "-smp", str(cpus), "-m", str(memory_mib),
        "-nodefaults", "-nic", "none", "-display", "none", "-no-reboot", "-monitor", "none",
        "-serial", f"file:{console}", "-serial", "stdio",
        "-kernel", str(kernel.image), "-initrd", str(start), "-append", _KERNEL_LINE,
        *shares, "-device", "virtio-rng-pci",
    ]  # fmt: skip
