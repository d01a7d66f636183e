"""The machine that is examined: its files under roots that can be chosen, and whom to ask where files do not tell.

Leans on verbs (files, topology) and on asked. A captured tree (`root`) has files only: nothing is opened for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rdmakit.cli.doctor.asked import Asked
from rdmakit.errors import UnknownDevice
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import Nic, NicPort, Topology, read_topology

__all__ = ["CAPTURED", "Machine"]

CAPTURED = "a captured tree: nothing can be opened"
_MELLANOX = 0x15B3
_NETWORK = (0x0200, 0x0207)  # PCI class codes: Ethernet, InfiniBand


@dataclass
class Machine:
    """`root`: where /proc, /dev, /sys and /etc are; /sys follows SYSFS_PATH when `root` is "/", as libibverbs does.

    `asked`: who opens devices and asks CUDA, NVML and commands; None for a captured tree. `needed`: what must be here,
    "gpu" or "rdma".
    """

    root: Path = Path("/")
    asked: Asked | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    needed: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()

    @classmethod
    def here(
        cls, root: str | Path = "/", needed: frozenset[str] = frozenset(), only: tuple[str, ...] = ()
    ) -> Machine:
        """This machine, or the tree at `root`; of its RDMA devices those of `only`, if any are named.

        BadArgument when there is neither a /sys nor a /proc; UnknownDevice for a name that is not there.
        """
        sysfs.require_machine(Path(root))
        found = cls(Path(root), Asked() if Path(root) == Path("/") else None, needed=needed, only=only)
        known = [nic.name for nic in found.topology.nics]
        for name in only:
            if name not in known:
                raise UnknownDevice("no such RDMA device", value=name, rule=f"there are {', '.join(known) or 'none'}",
                                    remedy="leave --device out for all, or name one of those")  # fmt: skip
        return found

    @cached_property
    def sys(self) -> Path:
        return sysfs.of_machine(self.root)

    @property
    def ask(self) -> Asked:
        """`asked`, in checks that are `live`."""
        assert self.asked is not None, CAPTURED
        return self.asked

    @property
    def emulated(self) -> bool:
        """Under `rdmakit connectx`: a preloaded library answers what libibverbs asks of the kernel."""
        return self.asked is not None and "_uverbs" in self.environment.get("LD_PRELOAD", "")

    @cached_property
    def topology(self) -> Topology:
        return read_topology(self.sys)

    @property
    def nics(self) -> tuple[Nic, ...]:
        return tuple(nic for nic in self.topology.nics if not self.only or nic.name in self.only)

    @cached_property
    def ports(self) -> list[tuple[Nic, NicPort]]:
        """Every port with its device."""
        return [(nic, port) for nic in self.nics for port in nic.ports]

    @property
    def active(self) -> list[tuple[Nic, NicPort]]:
        return [(nic, port) for nic, port in self.ports if port.state == "ACTIVE"]

    @cached_property
    def mellanox(self) -> list[str]:
        """PCI addresses of ConnectX's physical network functions, whether a driver has them or not."""
        at = self.sys / "bus/pci/devices"
        return [
            address
            for address in sysfs.names(at)
            if sysfs.read_int(at / address / "vendor") == _MELLANOX
            and sysfs.read_int(at / address / "class") >> 8 in _NETWORK
            and not (at / address / "physfn").exists()
        ]

    def read(self, *parts: str) -> str:
        """The stripped text of a file under `root`, "" when it cannot be read."""
        return sysfs.read(self.root.joinpath(*parts))

    def no_rdma(self) -> str:
        """Why there is nothing to look at; "" when there is an RDMA device."""
        return "" if self.nics else "no RDMA device"

    def no_gpu(self) -> str:
        """Likewise for GPUs, those of WSL2 included."""
        files = any(re.fullmatch(r"nvidia\d+|dxg", name) for name in sysfs.names(self.root / "dev"))
        here = self.topology.gpus or files
        return "" if here else "no NVIDIA GPU"

    def module(self, name: str) -> bool:
        """Whether a kernel module is there, loaded or built in (those with parameters or versions show alike)."""
        return (self.sys / "module" / name).is_dir()
