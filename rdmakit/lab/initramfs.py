"""What the lab's kernel starts from: busybox, the modules that mount the root, and guest/init.sh, as a cpio archive.

Leans on kernel. The archive is in "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rdmakit.lab.kernel import Kernel, in_order

__all__ = ["initramfs"]

_FOLDERS = ("bin", "dev", "low", "mod", "new", "proc", "rw", "sys")
_NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_FOLDER, _PROGRAM, _FILE, _LINK = 0o040755, 0o100755, 0o100644, 0o120777


def _entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive of path → (mode, bytes), in that order."""
    parts = [_entry(number, name, mode, data) for number, (name, (mode, data)) in enumerate(files.items(), 1)]
    return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"")])


def initramfs(kernel: Kernel, busybox: Path, init: Path) -> Path:
    """The archive in the cache, made again when it is older than `init` or busybox."""
    made = kernel.tree / "initramfs.cpio"
    newest = max(path.stat().st_mtime for path in (busybox, init, Path(__file__)))
    if made.exists() and made.stat().st_mtime > newest:
        return made
    files = dict.fromkeys(_FOLDERS, (_FOLDER, b""))
    files |= {"bin/busybox": (_PROGRAM, busybox.read_bytes()), "bin/sh": (_LINK, b"busybox")}
    for number, path in enumerate(in_order(kernel, _NEEDED)):
        files[f"mod/{number:02d}-{path.name.split('.')[0]}.ko"] = (_FILE, path.read_bytes())
    files["init"] = (_PROGRAM, init.read_bytes())
    fresh = made.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(archive(files))
    shutil.move(fresh, made)
    return made
