"""Notebook 07: a mapping of warps to queue pairs, asked on pools of many shapes, then judged by two ports' counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair, handle_array
from rdmakit.emu import World, compile_source
from rdmakit.emu.module import Module
from rdmakit.errors import CompileError, RdmakitError

_UNSET = 0xFFFFFFFF
_HEAD = "#include <rdmakit/signal.cuh>\nusing namespace rdmakit;\n"
# A bound, so that a mapping out of the pool is told and not followed.
_KERNELS = r"""
RDMAKIT_KERNEL ask(u32* out, u32 warps, u32 pool, u32 ports) {
    for (u32 warp = 0; warp < warps; ++warp) out[warp] = queue_of(warp, pool, ports);
}
RDMAKIT_KERNEL many(const QpHandle* qps, u32 pool, u32 ports, RemoteMemory to, LocalMemory from, u64 bytes) {
    const u32 number = queue_of(static_cast<u32>(block_id()), pool, ports);
    if (number >= pool) return;
    put(qps[number], to, from, bytes);
    quiet(qps[number]);
}
"""


@dataclass(frozen=True)
class _Pool:
    """`pool` queue pairs for `ports` ports, and so many warps that post to them."""

    warps: int
    pool: int
    ports: int

    def __str__(self) -> str:
        warps = "1 warp" if self.warps == 1 else f"{self.warps} warps"
        return f"{warps}, {self.pool} queue pairs of {self.ports} port{'s' * (self.ports != 1)}"

    def judge(self, trial: Trial, numbers: NDArray[Any]) -> None:
        outside = np.flatnonzero(numbers >= self.pool)
        if len(outside):
            raise Wrong(
                f"{self}: warp {outside[0]} takes queue pair {numbers[outside[0]]}, and there is none of that number"
            )
        by_port = np.bincount(numbers // (self.pool // self.ports), minlength=self.ports)
        trial.require(np.ptp(by_port) <= 1, f"{self}: ports have {by_port.tolist()} warps")
        sharers = np.bincount(numbers, minlength=self.pool)
        most, least = int(sharers.argmax()), int(sharers.argmin())
        trial.require(
            sharers[most] - sharers[least] <= 1,
            f"{self}: queue pair {most} has {sharers[most]} warps, queue pair {least} has {sharers[least]}",
        )


_POOLS = (
    *(_Pool(warps, 32, 2) for warps in (1, 2, 16, 31, 32, 33, 64, 100)),
    *(_Pool(warps, pool, 1) for warps, pool in ((5, 8), (20, 8), (7, 1))),
    *(_Pool(warps, pool, 4) for warps, pool in ((4, 8), (8, 32), (30, 8), (100, 12), (5, 4))),
    *(_Pool(warps, pool, 2) for warps, pool in ((3, 6), (10, 6), (9, 2), (50, 20))),
)
_SENT = (_Pool(16, 32, 2), _Pool(10, 12, 2), _Pool(48, 20, 2))


def _numbers(code: Module, case: _Pool) -> NDArray[Any]:
    world = World()
    out = world.array(case.warps, np.uint32, _UNSET)
    code.bind(world).get_function("ask")(1, 32, [out, case.warps, case.pool, case.ports])
    world.run()
    found: NDArray[Any] = out.copy()
    return found


def _carried(code: Module, case: _Pool, size: int = 512) -> list[int]:
    """Payload by port, each warp having sent one WRITE."""
    world = World(hosts=2, ports=case.ports)
    here, there = world.open(0), world.open(1)
    ports = np.repeat(range(1, case.ports + 1), case.pool // case.ports).tolist()
    pairs = [connected_pair(here, there, port=ports[0])]
    pairs += [connected_pair(here, there, port=port, beside=pairs[0]) for port in ports[1:]]
    near, far = pairs[0]
    source, target = near.pd.register(world.array(size)), far.pd.register(world.array(size))
    handles = handle_array([qp.device_handle() for qp, _ in pairs])
    arguments = [handles, case.pool, case.ports, target.remote(), source, size]
    code.bind(world).get_function("many")(case.warps, 32, arguments)
    world.run()
    return [here.port(port).counters["xmit_payload"] for port in range(1, case.ports + 1)]


@exercise(
    "07.queue_of",
    hints=(
        "Two neighbours, warp 0 and warp 1: which port should each take? Say it for any number of ports.",
        "A queue pair's number: where its port's part of the pool begins, plus a place in it. Both depend on warp.",
        "The place in the part must move on once every port has had its turn, and begin again where the part ends.",
    ),
    seconds=10.0,
)
def queue_of(trial: Trial, code: object) -> None:
    """The learner's device function, on pools of many shapes."""
    trial.is_a(code, str, "the function")
    assert isinstance(code, str)
    # Lines count as in the cell, whose first one names the exercise.
    whole = f'{_HEAD}#line 2 "exercise.cu"\n{code}\n#line 1 "check.cu"\n{_KERNELS}'
    try:
        module = compile_source(whole, policy="fast", name="exercise.cu")
        for case in _POOLS:
            case.judge(trial, _numbers(module, case))
        for case in _SENT:
            loads = _carried(module, case)
            trial.require(min(loads) * 1.05 >= max(loads), f"{case}: ports have carried {loads} bytes")
    except CompileError as error:
        raise Wrong(f"it does not compile: {error.rule or error.what}", "exception") from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
