"""Real GPUs that ring real doorbells, with no NIC: the emulated HCAs run in this thread and answer them.

Leans on the emulator's world (HCAs, fabric, verbs), on arena and module. All memory is page-locked memory of the host:
queues, doorbell records, payload. A GPU's kernel writes WQEs there and stores to its doorbell register; this thread
sees the store, lets the HCA execute what it finds, and the GPU polls the CQE that the HCA has written. So the fences
and acquires of the device code meet a real memory system, and an agent of system scope. It tests; it is not fast.

With `engine="cta"` warps of the GPUs answer instead (hca_engine.cuh): no host thread takes part between launch and
end, and `placement="gpu"` puts all memory, queues and registers included, into managed memory that lies on the GPU
while kernels run. NumPy's views of it stay valid; who looks while the world is idle brings the pages to the host, and
the next run takes them back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.device.launch import Shape
from rdmakit.device.provider import QpQueues, QpRequest
from rdmakit.emu.cta_engine import LEAVE, SERVE, SERVING
from rdmakit.emu.memory import ALIGNMENT
from rdmakit.emu.provider import EmulatedHca
from rdmakit.emu.runs import LaunchTime, Run
from rdmakit.emu.world import World as EmulatedWorld
from rdmakit.errors import BadArgument, HangError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.module import Kernel, Module, compile_source, stock_kernel

__all__ = ["BoundKernel", "BoundModule", "World"]

_DONE = 0
_REGISTERS = 4096
_PATIENCE_S = 60.0  # for kernels whose own waits are bounded by 10 s
_STACK = 0  # cudaLimitStackSize


class _AnsweredHca(EmulatedHca):
    """An emulated HCA whose doorbell registers are words that this process polls."""

    world: World

    def create_qp(self, request: QpRequest) -> QpQueues:
        made = super().create_qp(request)
        return made._replace(doorbell=self.world._register(self.index, made.doorbell))

    def ring(self, doorbell: int, value: int) -> None:
        super().ring(self.world._behind(doorbell), value)


class BoundKernel:
    """A kernel that is queued for GPU `rank` of a world, and launched by `world.run()`."""

    def __init__(self, world: World, kernel: Kernel) -> None:
        self.world = world
        self.kernel = kernel
        self.name = kernel.name

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
        """As with the CPU runner: launches of one rank and stream run in order, all others at the same time."""
        self.world.rank(rank)
        packed, keep = self.kernel.packed(args, self.world.arena.pointer)
        self.world._queue(_Launch(self.kernel, grid, block, packed, shared_mem, rank, stream, keep))

    def __repr__(self) -> str:
        return f"{self.kernel!r} in {self.world!r}"


class BoundModule:
    """A compiled module whose kernels are queued in a world."""

    def __init__(self, world: World, module: Module) -> None:
        self.world = world
        self.module = module

    @property
    def kernels(self) -> list[str]:
        """Names, in the order of the source."""
        return self.module.kernels

    def get_function(self, name: str) -> BoundKernel:
        """A kernel by its name; BadArgument when the source has none."""
        return BoundKernel(self.world, self.module.get_function(name))


@dataclass
class _Launch:
    kernel: Kernel
    grid: Shape
    block: Shape
    packed: tuple[np.void, ...]
    shared_mem: int
    rank: int
    stream: int
    keep: list[Any]


class World(EmulatedWorld):
    """Hosts, HCAs and fabric of the emulator, and GPUs that are real: those of a host are one, hosts may share it.

    The ranks of a host add to each other's words, and two GPUs that add to the same word of the host's memory lose
    additions where the bus has no atomics (cudaDevAttrHostNativeAtomicSupported: 16 became 13 on two H100s).

    Takes what `rdmakit.World` takes, but for `policy`; `memory` bytes are taken at once: page-locked memory of the
    host, or with `placement="gpu"`, which asks for `engine="cta"`, managed memory. All ranks of a GPU have to fit on
    it at the same time, since they wait for one another. NotAvailable without CuPy and a GPU.
    """

    _provider = _AnsweredHca

    def __init__(
        self,
        hosts: int = 1,
        gpus_per_host: int = 1,
        *,
        memory: int = 256 << 20,
        placement: str = "host",
        **options: Any,
    ) -> None:
        if placement != "host" and (placement != "gpu" or options.get("engine") != "cta"):
            raise BadArgument("no such placement", value=placement, rule='"host", or "gpu" with engine="cta"',
                              remedy="a thread of the host cannot poll registers that lie on the GPU")  # fmt: skip
        cp = cupy()
        self.arena = Arena(memory, managed=placement == "gpu")
        super().__init__(hosts, gpus_per_host, policy="fast", **options)
        self._registers = self.arena.array(_REGISTERS, np.uint64, 4096)
        self._rung = np.zeros(0, np.uint64)
        self._places: list[tuple[int, int]] = []  # of each register: its HCA, and the register behind it
        self._queued: list[_Launch] = []
        self._streams: dict[tuple[int, int], Any] = {}
        self._gpus = cp.cuda.runtime.getDeviceCount()

    def _gpu_of(self, rank: int) -> int:
        """The ranks of a host are one GPU, and hosts may share it."""
        return int(rank // self.topology.gpus_per_host % self._gpus)

    # ---- memory and registers
    def allocate(
        self, shape: int | tuple[int, ...], dtype: Any = np.uint8, alignment: int = ALIGNMENT
    ) -> np.ndarray[Any, Any]:
        """Memory of the world's arena."""
        return self.arena.array(shape, dtype, alignment)

    def reachable(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The array itself if it lies in the world's memory, else a copy that does."""
        if self.arena.holds(array):
            return array
        copy = self.allocate(array.shape, array.dtype)
        copy[...] = array
        return copy

    def _register(self, hca: int, behind: int) -> int:
        """A word for each queue pair: in memory, unlike at a NIC, a later store would hide an earlier one."""
        self._places.append((hca, behind))
        self._rung = np.append(self._rung, np.uint64(0))
        return int(self._registers[len(self._places) - 1 :].ctypes.data)

    def _behind(self, register: int) -> int:
        index = (register - int(self._registers.ctypes.data)) // 8
        return self._places[index][1] if 0 <= index < len(self._places) else register

    # ---- kernels
    def compile(self, code: str, *, lanes: int | None = None, name: str = "kernel.cu") -> Any:
        """Compile device code for the GPUs; `lanes` are always 32."""
        return BoundModule(self, compile_source(code, name=name))

    def stock_kernel(self, name: str) -> Any:
        """A kernel of cuda/kernels, by name."""
        return BoundKernel(self, stock_kernel(name))

    def _queue(self, launch: _Launch) -> None:
        self._require_idle()
        self._queued.append(launch)
        if self._cta is not None:
            self._cta.launched(launch.rank, launch.stream)

    # ---- running
    def _answer(self) -> bool:
        """Pass on what has been stored to doorbell registers; whether there was any."""
        count = len(self._places)
        now = self._registers[:count].copy()
        changed = np.nonzero(now != self._rung)[0]
        for index in changed:
            hca, behind = self._places[index]
            self._core.mmio_write64(hca, behind, int(now[index]))
        self._rung = now
        return changed.size != 0

    def _drive(self) -> int:
        cp = cupy()
        queued, self._queued = self._queued, []
        # Who answers doorbells has to be there before who rings, and what would stop the device is done before that.
        queued.sort(key=lambda launch: launch.kernel.name != SERVE)
        self._prepare(queued)
        under_way: list[tuple[_Launch, Any, Any]] = []
        last_to_leave = None
        for launch in queued:
            with cp.cuda.Device(self._gpu_of(launch.rank)):
                key = launch.rank, launch.stream
                if key not in self._streams:
                    self._streams[key] = cp.cuda.Stream(non_blocking=True)
                stream = self._streams[key]
                begin, end = cp.cuda.Event(), cp.cuda.Event()
                if launch.kernel.name == LEAVE:
                    # All of them add to one word. In the host's memory two GPUs that do so at a time lose additions,
                    # and those who serve would wait for a leaver that has left: so one after the other.
                    if last_to_leave is not None:
                        stream.wait_event(last_to_leave)
                    last_to_leave = end
                begin.record(stream)
                launch.kernel.launch(
                    launch.grid, launch.block, launch.packed, shared_mem=launch.shared_mem, stream=stream
                )
                end.record(stream)
            under_way.append((launch, begin, end))
        deadline = time.monotonic() + _PATIENCE_S
        waits = [end for _, _, end in under_way]
        while waits:
            self._answer()
            self._core.run()
            waits = [end for end in waits if not end.done]
            if waits and time.monotonic() > deadline:
                raise HangError(
                    "kernels have not ended", rule=f"their waits are bounded: {_PATIENCE_S:g} s are enough",
                    value=", ".join(sorted({launch.kernel.name for launch, _, end in under_way if not end.done})),
                    remedy="see the reports of their handles; a loop without a bound needs one",
                )  # fmt: skip
        while self._answer():
            self._core.run()
        self._core.run()
        self._times = [
            LaunchTime(launch.kernel.name, launch.rank, 0.0, 1e6 * cp.cuda.get_elapsed_time(begin, end))
            for launch, begin, end in under_way
        ]
        return _DONE

    def _prepare(self, queued: Sequence[_Launch]) -> None:
        """With a kernel under way that waits for others, none of these may begin by waiting for the device."""
        if self._cta is None:
            return
        runtime = cupy().cuda.runtime
        for gpu in sorted({self._gpu_of(launch.rank) for launch in queued}):
            with cupy().cuda.Device(gpu) as device:
                # Each GPU loads a kernel when it is first asked for it there; loading may wait for what runs.
                most = max(launch.kernel.local_bytes for launch in queued if self._gpu_of(launch.rank) == gpu)
                if most > runtime.deviceGetLimit(_STACK):
                    runtime.deviceSetLimit(_STACK, most)
                self.arena.map_to(gpu, cupy().cuda.Stream.null)
                device.synchronize()

    def run(self) -> Run:
        """Launch what is queued and answer doorbells until all of it has ended and every HCA is idle.

        Times are measured: each launch's own duration, from 0. HangError when kernels do not end within a minute; one
        that has given up leaves its report, as on any GPU (`handle.report.raise_for_status()`).
        """
        done = super().run()
        ours = SERVING if self._cta is not None else ()
        return Run([time for time in self._times if time.kernel not in ours], 0, done.faults)
