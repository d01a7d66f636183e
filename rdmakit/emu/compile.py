"""Compiling device code for the CPU runner: a source string, or a kernel of cuda/kernels by name.

Leans on source, compiler, cache; `module` only when something is loaded, so that wheels can be built from
here.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import rdmakit
from rdmakit.device.source import cell_line, find_kernels
from rdmakit.emu.cache import compiled
from rdmakit.emu.compiler import Recipe, recipe
from rdmakit.emu.source import prepare
from rdmakit.errors import BadArgument

if TYPE_CHECKING:
    from rdmakit.emu.module import Kernel, Module

__all__ = ["build_stock", "compile_source", "stock_kernel", "stock_kernels", "stock_path"]

_POLICIES = {"fast": 0, "timed": 1, "explore": 2}
_loaded: dict[Path, Module] = {}


def _policy(name: str) -> int:
    if name not in _POLICIES:
        raise BadArgument("no such policy", value=name, rule="one of " + ", ".join(_POLICIES),
                          remedy="fast to run, timed for the virtual clock, explore to find a missing fence")
    return _POLICIES[name]


def _load(plan: Recipe) -> Module:
    """One module for each shared object: loading it again would ask its entries while it is armed."""
    from rdmakit.emu.module import Module

    path = compiled(plan)
    found = _loaded.get(path)
    if found is None:
        try:
            found = Module(path, plan.source.kernels)
        except (OSError, AttributeError):  # cut short by a full disk, or not ours
            path = compiled(plan, again=True)
            found = Module(path, plan.source.kernels)
        _loaded[path] = found
    return found


def compile_source(
    code: str,
    *,
    policy: str = "fast",
    lanes: int | None = None,
    name: str = "kernel.cu",
    first_line: int | None = None,
    preempted: bool = True,
    include_dirs: tuple[str, ...] = (),
    defines: tuple[str, ...] = (),
) -> Module:
    """Compile CUDA C++ for the CPU runner and load it.

    Kernels are `RDMAKIT_KERNEL name(…)` or `__global__ void name(…)`. `policy`: "fast", "timed" or "explore".
    `lanes`: 1 runs a warp as one fibre, for code written with `lane_id()` and our collectives; 32 runs a
    fibre a thread, for any CUDA code, with `threadIdx`, `__syncthreads` and their kin. By default 32 where
    CUDA's own names occur. `preempted` False lets code run on between primitives: faster, but a loop without
    any then never ends. `name` stands in messages and reports. Compiled once for each content of the source
    and of every header it includes. CompileError carries the compiler's log; NotAvailable says how to get a
    compiler.

    >>> module = compile_source("#include <rdmakit/warp.cuh>\\nRDMAKIT_KERNEL one(int* p) { *p = 1; }")
    >>> module.get_function("one")
    <Kernel one(pointer8): fast, a fibre a warp>
    """
    if first_line is None:
        first_line = cell_line(code) if isinstance(code, str) else 1
    source = prepare(code, name, first_line)
    if lanes is None:
        lanes = 32 if source.raw else 1
    if lanes not in (1, 32):
        raise BadArgument("lanes of a fibre", value=lanes, rule="1 (a fibre a warp) or 32 (a fibre a thread)",
                          remedy="leave it out: the source decides")
    directories = tuple(os.path.abspath(directory) for directory in include_dirs)
    return _load(
        recipe(
            source,
            policy=_policy(policy),
            lanes=lanes,
            preempted=preempted,
            include_dirs=directories,
            defines=defines,
        )
    )


def _stock_files() -> list[Path]:
    return sorted(Path(rdmakit.get_include(), "kernels").glob("*.cu"))


def _stock_recipe(path: Path, policy: int) -> Recipe:
    source = prepare(path.read_text(encoding="utf-8"), f"kernels/{path.name}")
    return recipe(source, policy=policy, lanes=1, preempted=False)


@functools.lru_cache(maxsize=64)
def _kernels_of(path: Path, modified_ns: int) -> tuple[str, ...]:
    del modified_ns
    return tuple(name for name, _ in find_kernels(path.read_text(encoding="utf-8")))


def stock_kernels() -> dict[str, Path]:
    """The kernels of cuda/kernels: name → file."""
    return {name: path for path in _stock_files() for name in _kernels_of(path, path.stat().st_mtime_ns)}


def stock_path(name: str) -> Path:
    """The file of cuda/kernels that defines a kernel; BadArgument if none does."""
    known = stock_kernels()
    if name not in known:
        raise BadArgument("no such stock kernel", value=name, rule=f"cuda/kernels has {', '.join(sorted(known))}",
                          remedy="compile a source of your own with world.compile(code)")
    return known[name]


def stock_kernel(name: str, policy: str = "fast") -> Kernel:
    """A kernel of cuda/kernels: from the wheel, the cache, or compiled now. BadArgument if unknown."""
    return _load(_stock_recipe(stock_path(name), _policy(policy))).get_function(name)


def build_stock(directory: Path) -> int:
    """Compile all of cuda/kernels, for every policy, into `directory`; returns how many. For building wheels.

    What is there and still right is kept, what belongs to no kernel of today is removed.
    """
    plans = [_stock_recipe(path, policy) for path in _stock_files() for policy in _POLICIES.values()]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = set(pool.map(lambda plan: compiled(plan, into=directory), plans))
    for old in directory.glob("*/*"):
        if old.with_suffix(".so") not in made:
            old.unlink()
    for old in directory.glob("*"):
        if old.is_dir() and not any(old.iterdir()):
            old.rmdir()
    return len(plans)
