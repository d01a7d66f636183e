"""The lab's kernel: Debian's own, downloaded by apt into a cache folder, nothing installed.

Leans on errors. Full kernels of Debian have rdma_rxe, veth, netem and 9p, which cloud kernels and many hosts' own lack;
rdma_rxe works inside a network namespace from Linux 7 on, which trixie-backports has. Names of kernel packages hold
their version and rotate, so the one to take is what the metapackage depends on today.
"""

from __future__ import annotations

import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rdmakit.errors import NotAvailable

__all__ = ["SETUP", "Kernel", "cache_folder", "download_kernel", "find_kernel", "in_order"]

SETUP = "make lab-setup, or rdmakit lab --setup"
_MIRROR, _SUITE = "http://deb.debian.org/debian", "trixie-backports"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What the machine loads, itself or for its tests. They are unpacked once here rather than by an emulated processor.
_MODULES = ("rdma_rxe", "ib_uverbs", "rdma_ucm", "veth", "sch_tbf", "sch_netem", "9p", "9pnet_virtio", "overlay")


@dataclass(frozen=True)
class Kernel:
    """A kernel that lies in the cache: its version, the tree with lib/modules, the image."""

    version: str
    tree: Path
    image: Path

    @property
    def modules(self) -> Path:
        """lib/modules/VERSION."""
        return self.tree / "lib/modules" / self.version


def cache_folder() -> Path:
    """RDMAKIT_LAB_CACHE, else rdmakit/lab in XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("RDMAKIT_LAB_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "rdmakit", "lab").absolute()


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def find_kernel(folder: Path | None = None) -> Kernel:
    """The newest kernel of the cache. NotAvailable, with the command that gets one, when there is none.

    >>> find_kernel(Path("/nonexistent"))
    Traceback (most recent call last):
    rdmakit.errors.NotAvailable: the lab has no kernel yet (value /nonexistent)...
    """
    folder = folder or cache_folder()
    versions = list(folder.glob("*/kernel-is-whole"))
    if not versions:
        raise NotAvailable(
            "the lab has no kernel yet",
            value=folder,
            rule="a kernel of Debian's is downloaded once, 120 MB, into RDMAKIT_LAB_CACHE or ~/.cache/rdmakit/lab",
            remedy=SETUP,
        )
    tree = max((path.parent for path in versions), key=lambda path: _numbers(path.name))
    return Kernel(tree.name, tree, tree / "vmlinuz")


# ---- getting one
class _Apt:
    """apt with a source list, package lists and a cache of its own: the machine's stay as they are."""

    def __init__(self, folder: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        mirror = os.environ.get("RDMAKIT_LAB_MIRROR", _MIRROR)
        self.suite = os.environ.get("RDMAKIT_LAB_SUITE", _SUITE)
        keys = f" [signed-by={_KEYS}]" if _KEYS.exists() else ""
        sources = folder / "sources.list"
        sources.write_text(f"deb{keys} {mirror} {self.suite} main\n")
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "",  # the folder is the caller's, and _apt may not write there
        }
        self._options = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        self._folder = folder

    def __call__(self, program: str, *arguments: str) -> str:
        """What it prints. NotAvailable with what it complains of when it fails."""
        return _output([program, *self._options, "-q", *arguments], self._folder)


def _output(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line[:2] in ("E:", "W:")] or [done.stderr]
        raise NotAvailable(
            "the lab's kernel cannot be downloaded",
            value=" ".join([command[0], *(part for part in command[1:] if not re.match("-|[A-Z]", part))]),
            rule=said[-1].strip() or f"exit status {done.returncode}",
            remedy="check the network, or name a mirror of Debian in RDMAKIT_LAB_MIRROR and a suite with Linux 7 in "
            "RDMAKIT_LAB_SUITE; on Ubuntu first: apt-get install debian-archive-keyring",
        )
    return done.stdout


def _packages(apt: _Apt) -> tuple[str, list[str]]:
    """(version, packages) of the newest kernel of the suite: in one package, or split in image, modules and base."""
    found = re.search(r"\blinux-image-(\d[\w.+~-]*-amd64)\b", apt("apt-cache", "show", "linux-image-amd64"))
    if found is None:
        raise NotAvailable(
            "the suite has no kernel", value=apt.suite, rule="linux-image-amd64 depends on one",
            remedy="name another suite in RDMAKIT_LAB_SUITE",
        )  # fmt: skip
    version = found[1]
    known = set(apt("apt-cache", "pkgnames", "linux-").split())
    split = [f"linux-base-{version}", f"linux-modules-{version}"]
    images = (f"linux-binary-unsigned-{version}", f"linux-binary-{version}")
    if not known.issuperset(split):
        return version, [f"linux-image-{version}"]
    return version, [*split, *[name for name in images if name in known][:1]]


def download_kernel(folder: Path | None = None) -> Kernel:
    """Download the newest kernel of the suite, unless it is there, and unpack it into the cache; needs no root.

    NotAvailable where this machine has no apt, is no x86-64, or cannot reach a mirror.
    """
    folder = folder or cache_folder()
    if platform.machine() != "x86_64":
        raise NotAvailable(
            "the lab is not for this machine", value=platform.machine(), rule="it runs x86-64 guests on x86-64",
            remedy="rdmakit connectx runs verbs programs on emulated NICs",
        )  # fmt: skip
    for program in ("apt-get", "dpkg-deb", "depmod"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise NotAvailable(
                "the lab's kernel cannot be unpacked", value=program, rule="apt, dpkg and kmod do it",
                remedy="apt-get install -y kmod; or set the lab up in a Debian or Ubuntu container, and keep its cache",
            )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as name:
            _download(folder, Path(name))
    except OSError as error:
        raise NotAvailable(
            "the lab's kernel cannot be kept", value=folder, rule=str(error),
            remedy="name a folder with 400 MB of room that you may write to in RDMAKIT_LAB_CACHE",
        ) from None  # fmt: skip
    return find_kernel(folder)


def _download(folder: Path, work: Path) -> None:
    apt = _Apt(work)
    apt("apt-get", "update")
    version, packages = _packages(apt)
    tree = folder / version
    if (tree / "kernel-is-whole").exists():
        return
    apt("apt-get", "download", *packages)
    _unpack(version, sorted(work.glob("*.deb")), work / "tree")
    shutil.rmtree(tree, ignore_errors=True)
    (work / "tree").rename(tree)


def _unpack(version: str, archives: Sequence[Path], tree: Path) -> None:
    """Lay the packages' files out as modprobe and qemu want them, and index the modules."""
    raw = tree.with_name("raw")
    for archive in archives:
        _output(["dpkg-deb", "-x", str(archive), str(raw)], tree.parent)
    modules = next(iter(raw.glob(f"**/lib/modules/{version}")), None)
    images = [*raw.glob("boot/vmlinuz*"), *(modules or raw).glob("vmlinuz*")]
    present = {path.name.split(".")[0].replace("-", "_") for path in (modules or raw).glob("kernel/**/*.ko*")}
    lacking = [name for name in _MODULES if name not in present]
    if modules is None or not images or lacking:
        raise NotAvailable(
            "the kernel lacks what the lab needs", value=version,
            rule=f"an image, and the modules {', '.join(lacking) or 'of that version'}",
            remedy="name another suite in RDMAKIT_LAB_SUITE",
        )  # fmt: skip
    (tree / "lib/modules").mkdir(parents=True)
    images[0].rename(tree / "vmlinuz")
    modules.rename(tree / "lib/modules" / version)
    kernel = Kernel(version, tree, tree / "vmlinuz")
    _index(kernel)
    for path in in_order(kernel, _MODULES):
        if path.suffix == ".xz":
            path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
            path.unlink()
    _index(kernel)
    (tree / "kernel-is-whole").touch()


def _index(kernel: Kernel) -> None:
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "depmod"
    _output([depmod, "-b", str(kernel.tree), kernel.version], kernel.tree.parent)


def in_order(kernel: Kernel, names: Sequence[str]) -> list[Path]:
    """Files of these modules, each behind those that it depends on; what is built in has none."""
    dependencies: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        dependencies[path] = needs.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in dependencies}
    found: dict[str, None] = {}
    for path in (by_name[name] for name in names if name in by_name):
        found |= dict.fromkeys([*reversed(dependencies[path]), path])  # modules.dep names the nearest first
    return [kernel.modules / path for path in found]
