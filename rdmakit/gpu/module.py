"""Compiled device code on a GPU: modules, and kernels that are launched on any stream.

Leans on headers, arguments, cuda, CuPy's RawModule, and on emu.compile for where kernels of ours are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rdmakit
from rdmakit.device.launch import Shape, dim3
from rdmakit.device.source import cell_line, parameters, require_kernels
from rdmakit.emu.compile import stock_kernels, stock_path
from rdmakit.errors import BadArgument, CompileError, LaunchError
from rdmakit.gpu.arguments import device_pointer, pack_for
from rdmakit.gpu.cuda import cupy, parameter_sizes, stream_of
from rdmakit.gpu.headers import source_key

__all__ = ["Kernel", "Module", "compile_source", "stock_kernel", "stock_module"]

class Kernel:
    """A kernel of a `Module`: `kernel(grid, block, args, shared_mem=…, stream=…)` launches it on the current device.

    It returns at once; nothing is synchronised, so that it can be captured into a CUDA graph.
    """

    def __init__(self, name: str, texts: tuple[str, ...], raw: Any) -> None:
        self.name = name
        self.parameters = texts
        self.raw = raw
        self.sizes = parameter_sizes(raw.kernel.ptr)
        self._shared_mem = 48 * 1024  # what it may have: more has to be asked for, once
        if len(self.sizes) != len(texts):
            raise LaunchError(
                f"the parameters of {name} are not understood", value=", ".join(texts),
                rule=f"the driver counts {len(self.sizes)}", remedy="write them without macros",
            )  # fmt: skip

    @property
    def registers(self) -> int:
        """Registers a thread."""
        return int(self.raw.num_regs)

    @property
    def local_bytes(self) -> int:
        """Bytes a thread in local memory: spills and arrays."""
        return int(self.raw.local_size_bytes)

    def __call__(
        self, grid: Shape, block: Shape, args: Sequence[Any] = (), *, shared_mem: int = 0, stream: Any = None
    ) -> None:
        """Launch it.

        `grid`, `block`: blocks, threads a block (up to three dimensions). `args`: arrays of CuPy's, torch's or
        anybody's with `__cuda_array_interface__`, addresses, `Report` in pinned memory for pointers; numbers;
        structured scalars and handles for structs by value. Whoever calls keeps arrays alive until it has run, as with
        CuPy. `shared_mem`: bytes of dynamic shared memory. `stream`: CuPy's, torch's, or a cudaStream_t as int; by
        default CuPy's current one. BadArgument for wrong arguments, LaunchError for a shape or memory that the GPU
        refuses.
        """
        packed, _ = self.packed(args)
        self.launch(grid, block, packed, shared_mem=shared_mem, stream=stream)

    def packed(self, args: Sequence[Any], pointer: Any = device_pointer) -> tuple[tuple[np.void, ...], list[Any]]:
        """Arguments checked and packed, for `launch`, and what to keep alive. `pointer`: what passes for a pointer."""
        return pack_for(self.name, self.parameters, self.sizes, args, pointer)

    def launch(
        self, grid: Shape, block: Shape, packed: tuple[np.void, ...], *, shared_mem: int = 0, stream: Any = None
    ) -> None:
        """Launch it with arguments that `packed` has made; they can be used again."""
        shapes = dim3("grid", grid), dim3("block", block)
        cp = cupy()
        if shared_mem > self._shared_mem:
            self._allow(shared_mem)
        try:
            self.raw.kernel(*shapes, packed, int(shared_mem), stream_of(stream))
        except cp.cuda.driver.CUDADriverError as error:
            raise self._refused(error, shapes, shared_mem) from None

    def _allow(self, shared_mem: int) -> None:
        try:
            self.raw.max_dynamic_shared_size_bytes = self._shared_mem = int(shared_mem)
        except cupy().cuda.driver.CUDADriverError as error:
            raise self._refused(error, (), shared_mem) from None

    def _refused(self, error: Exception, shapes: Any, shared_mem: int) -> LaunchError:
        limit = self.raw.max_threads_per_block
        return LaunchError(
            f"the GPU refuses to launch {self.name}",
            value=f"{shapes}, {shared_mem} B of shared memory",
            rule=str(error),
            remedy=f"it takes {self.registers} registers a thread, at most {limit} threads a block",
        )

    def __repr__(self) -> str:
        return f"<gpu.Kernel {self.name}({', '.join(self.parameters)}): {self.registers} registers>"


class Module:
    """Device code compiled for the current device. `kernels` lists its kernels' names."""

    def __init__(self, code: str, raw: Any, kernels: tuple[tuple[str, str], ...], name: str) -> None:
        self.name = name
        self._code = code
        self._raw = raw
        self._spaces = dict(kernels)
        self._loaded: dict[tuple[int, str], Kernel] = {}

    @property
    def kernels(self) -> list[str]:
        """Names, in the order of the source."""
        return list(self._spaces)

    def get_function(self, name: str) -> Kernel:
        """A kernel by its name; BadArgument when the source has none."""
        if name not in self._spaces:
            raise BadArgument("no such kernel", value=name, rule=f"{self.name} has {', '.join(self.kernels)}",
                              remedy="see Module.kernels")  # fmt: skip
        here = int(cupy().cuda.Device().id), name
        if here not in self._loaded:
            full = "::".join(part for part in (self._spaces[name], name) if part)
            self._loaded[here] = Kernel(name, parameters(self._code, name), self._raw.get_function(full))
        return self._loaded[here]

    def __repr__(self) -> str:
        return f"<gpu.Module of {', '.join(self.kernels)}>"


@functools.lru_cache(maxsize=256)
def _compiled(
    code: str, kernels: tuple[tuple[str, str], ...], key: str, name: str, first_line: int, options: tuple[str, ...]
) -> Module:
    cp = cupy()
    file = name.replace("\\", "\\\\").replace('"', '\\"')
    raw = cp.RawModule(
        code=f'#line {first_line} "{file}"\n{code}',
        # CuPy knows compiled code by its source and options: the key tells it of headers.
        options=("-std=c++17", *options, f"-DRDMAKIT_SOURCE_KEY={key}"),
        backend="nvrtc",
        name_expressions=["::".join(part for part in (space, kernel) if part) for kernel, space in kernels],
    )
    try:
        raw.compile()
    except cp.cuda.compiler.CompileException as error:
        log = error.get_message() if hasattr(error, "get_message") else str(error)
        raise CompileError(f"NVRTC does not compile {name}", log=log, remedy="read the log") from None
    return Module(code, raw, kernels, name)


def compile_source(
    code: str,
    *,
    name: str = "kernel.cu",
    first_line: int | None = None,
    include_dirs: Sequence[str] = (),
    defines: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Module:
    """Compile CUDA C++ for the current device and load it.

    Kernels are `RDMAKIT_KERNEL name(…)` or `__global__ void name(…)`. `include_dirs`: before rdmakit's own; `defines`:
    "NAME" or "NAME=value"; `options`: NVRTC's. Compiled once for each content of the source and of every header that it
    includes, here and in CuPy's cache on disk. CompileError carries the log; NotAvailable without CuPy and a GPU.
    """
    kernels = tuple(require_kernels(code, name))
    if first_line is None:
        first_line = cell_line(code)
    directories = [*(str(Path(directory).resolve()) for directory in include_dirs), rdmakit.get_include()]
    given = [*options, *(f"-D{define}" for define in defines), *(f"-I{directory}" for directory in directories)]
    device = cupy().cuda.Device()
    key = f"{source_key(code, directories)}_{device.compute_capability}"
    return _compiled(code, kernels, key, name, first_line, tuple(given))


def _stock(path: Path) -> Module:
    return compile_source(path.read_text(encoding="utf-8"), name=f"kernels/{path.name}", first_line=1)


def stock_module(stem: str) -> Module:
    """A file of cuda/kernels, by its name without `.cu`. BadArgument when there is none."""
    known = {path.stem: path for path in stock_kernels().values()}
    if stem not in known:
        raise BadArgument("no such file of kernels", value=stem, rule=f"one of {', '.join(sorted(known))}",
                          remedy="see cuda/kernels")  # fmt: skip
    return _stock(known[stem])


def stock_kernel(name: str) -> Kernel:
    """A kernel of cuda/kernels. BadArgument when there is none of that name."""
    return _stock(stock_path(name)).get_function(name)
