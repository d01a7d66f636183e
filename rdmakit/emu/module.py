"""Compiled device code: modules, and kernels that are launched like CuPy's.

Leans on device.arguments, device.launch and the C++ world (kernel entries).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdmakit.device.arguments import pack
from rdmakit.device.launch import Shape, dim3
from rdmakit.emu._world import kernel_entry
from rdmakit.errors import BadArgument, BadState

if TYPE_CHECKING:
    from rdmakit.emu.world import World

__all__ = ["Kernel", "Module"]

_POLICY_NAMES = ("fast", "timed", "explore")


def _laid_out(packed: Sequence[bytes]) -> tuple[bytes, tuple[int, ...]]:
    """One range of bytes, and where each argument begins: aligned as anything but an over-aligned struct asks for."""
    found, offsets = bytearray(), []
    for one in packed:
        found += bytes(-len(found) % 16)
        offsets.append(len(found))
        found += one
    return bytes(found), tuple(offsets)


class Kernel:
    """A kernel of a `Module`: `kernel(grid, block, args, shared_mem=…, rank=…, stream=…)` queues a launch.

    Launches run when `world.run()` is called; those of one rank and stream in order, all others at the same
    time.
    """

    def __init__(self, module: Module, name: str, entry: int) -> None:
        self.module = module
        self.name = name
        self._entry = entry
        _, policy, self.lanes, self.layout_version, self.types = kernel_entry(entry)
        self.policy = _POLICY_NAMES[policy]

    def bind(self, world: World) -> Kernel:
        """The same kernel, launched in `world`. BadState when it was compiled for another policy."""
        return self.module.bind(world).get_function(self.name)

    def __call__(
        self,
        grid: Shape,
        block: Shape,
        args: Sequence[Any] = (),
        *,
        shared_mem: int = 0,
        rank: int = 0,
        stream: int = 0,
    ) -> None:
        """Queue a launch on GPU `rank`.

        `grid`, `block`: blocks, threads a block (up to three dimensions). `args`: arrays, MRs and addresses
        for pointers, numbers, handles and structured scalars for structs by value; arrays stay alive until it
        has run. `shared_mem`: bytes of dynamic shared memory. BadArgument for wrong arguments, LaunchError
        for a shape that the GPU refuses, BadState without a world.
        """
        world = self.module.world
        if world is None:
            raise BadState(
                f"{self.name} is bound to no world",
                rule="a launch needs GPUs",
                remedy="kernel.bind(world), or compile with world.compile(…)",
            )
        packed, keep = pack(self.name, self.types, args)
        arguments, offsets = _laid_out(packed)
        world._launch(
            self._entry,
            dim3("grid", grid),
            dim3("block", block),
            arguments,
            offsets,
            int(shared_mem),
            int(rank),
            int(stream),
            self.module.section,
            (self.module, keep),
            self.name,
        )

    def __repr__(self) -> str:
        kinds = ", ".join(f"{('pointer', 'integer', 'float', 'struct')[kind]}{nbytes}" for kind, nbytes in self.types)
        mode = "a fibre a warp" if self.lanes == 1 else "a fibre a thread"
        return f"<Kernel {self.name}({kinds}): {self.policy}, {mode}>"


class Module:
    """A loaded shared object of device code. `kernels` lists its kernels' names."""

    def __init__(self, path: Path, kernels: tuple[str, ...]) -> None:
        self.path = path
        self.world: World | None = None
        self._library = ctypes.CDLL(str(path))
        # Entries run on Python's stack, which is no fibre: nothing may be preempted or watched meanwhile.
        self._arm(False)
        self._entries: dict[str, int] = {}
        for name in kernels:
            entry = getattr(self._library, f"rdmakit_entry_{name}")
            entry.restype = ctypes.c_void_p
            self._entries[name] = int(entry())
        self.section = self._shared_section()
        self._arm(True)

    def _shared_section(self) -> tuple[int, int]:
        """Address and size of the module's raw `__shared__` variables; (0, 0) without any."""
        try:
            section = self._library.rdmakit_shared_section
        except AttributeError:
            return 0, 0
        size = ctypes.c_ulonglong()
        section.restype = ctypes.c_void_p
        begin = section(ctypes.byref(size))
        return (int(begin), int(size.value)) if begin and size.value else (0, 0)

    def _arm(self, on: bool) -> None:
        for hook in ("rdmakit_preemption", "rdmakit_watching"):  # cpu_preempt.cuh, cpu_watch.cuh
            with contextlib.suppress(ValueError):  # not compiled with it
                ctypes.c_int.in_dll(self._library, hook).value = on

    @property
    def kernels(self) -> list[str]:
        """Names, in the order of the source."""
        return list(self._entries)

    def bind(self, world: World) -> Module:
        """The same module, whose kernels launch in `world`. BadState when compiled for another policy."""
        bound = Module.__new__(Module)
        bound.__dict__.update(self.__dict__)
        for name in self._entries:
            policy = Kernel(self, name, self._entries[name]).policy
            if policy != world.policy:
                raise BadState(
                    f"{name} was compiled for another policy",
                    value=policy,
                    rule=f"the world's is {world.policy!r}",
                    remedy="compile it with world.compile(…), which knows",
                )
        bound.world = world
        return bound

    def get_function(self, name: str) -> Kernel:
        """The kernel of that name. BadArgument when there is none."""
        if name not in self._entries:
            raise BadArgument("no such kernel", value=name, rule=f"this module has {', '.join(self._entries)}",
                              remedy="kernels are __global__ functions; RDMAKIT_KERNEL declares one")
        return Kernel(self, name, self._entries[name])

    def __repr__(self) -> str:
        return f"<Module of {', '.join(self._entries)}{'' if self.world is None else f' in {self.world!r}'}>"
