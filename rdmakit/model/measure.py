"""One step of the ladder: the real device code of a kernel on a described cluster, in virtual time, with all its
counters.

Leans on cluster, plan, workload, steps, usage and ep. Every run checks itself: ports carry the very payload that the
plan says, what is sent is received, no WQE fails, and every row lies where the routing wants it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep import verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.ep.wiring import Wiring
from rdmakit.errors import BadState
from rdmakit.model.cluster import steer_by, world_of
from rdmakit.model.plan import Plan, make_plan
from rdmakit.model.preset import Preset
from rdmakit.model.steps import Step
from rdmakit.model.trace import Timeline, record
from rdmakit.model.traffic import remote_tokens
from rdmakit.model.usage import Reading, Usage, read, usage
from rdmakit.model.workload import Workload

__all__ = ["Measured", "measure", "wiring_of"]

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
LL_QPS = 8  # the most queue pairs between two ranks in low latency


@dataclass(frozen=True)
class Measured:
    """`microseconds`: mean over ranks of the operation's kernels, launch included. `logical_gbs`: as DeepEP counts,
    a token once for each host that it goes to, its own too; on one host once for each rank, its own too (the normal
    kernels' tests, internode and intranode), and low latency once for each expert. `wire_gbs`: payload that left by
    ports, of the mean rank. `port_payload_fraction`: that over its ports' line rate.
    `logical_bytes`, `wire_bytes`: of the mean rank. `put_rows`: the most rows of a put. `setup_cpu_s`: what this
    process worked on routing, plan, heaps and queue pairs before the operation began.
    """

    step: int
    microseconds: float
    slowest_us: float
    logical_gbs: float
    wire_gbs: float
    port_payload_fraction: float
    logical_bytes: float
    wire_bytes: float
    port_max_over_min: float
    spine_max_over_mean: float
    doorbells: int
    wqes: int
    usage: Usage
    put_rows: int
    port_bytes: NDArray[np.int64] = field(repr=False)
    timeline: Timeline | None = field(default=None, repr=False, compare=False)
    setup_cpu_s: float = field(default=0.0, repr=False, compare=False)


def wiring_of(step: Step, plan: Plan | None) -> Wiring:
    """The step as a mesh takes it."""
    return Wiring(step.qps, step.credit_qps, step.fenced, None if plan is None else steer_by(plan))


def measure(preset: Preset, work: Workload, step: Step, *, seed: int = 0, timeline: bool = False) -> Measured:
    """Runs it; with `timeline` keeps all that happens. BadState when a check of the run itself fails; whatever the
    run raises."""
    with _no_garbage():
        started = _cpu_seconds()
        work = work.at_step(step.number)
        choices = work.choices()
        run = _normal if work.kernel == "normal" else _low_latency
        ready: list[float] = []
        found = run(preset, work, step, choices, seed, timeline, lambda: ready.append(_cpu_seconds()))
    return replace(found, setup_cpu_s=ready[0] - started)


def _cpu_seconds() -> float:
    now = os.times()
    return now.user + now.system


@contextmanager
def _no_garbage() -> Iterator[None]:
    """A run makes objects by the million and drops no cycle of them before it ends. Looking at all of them again and
    again for garbage, as Python does while they grow in number, is time that buys nothing."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _plan(preset: Preset, work: Workload, step: Step, choices: list[Any], qps: int, total: int) -> tuple[Plan, Plan]:
    """The plan that steers, made before the routing is known; and the same under this routing."""
    plan = make_plan(preset, work.kernel, channels=total, data=qps, policy=step.policy)
    traffic = np.zeros((work.ranks, work.ranks, total), np.int64)
    by_channel = work.traffic(choices)
    for channel in range(work.channels):
        traffic[:, :, channel % qps] += by_channel[:, :, channel]
    return plan, plan.carrying(traffic)


def _inputs(world: Any, work: Workload) -> Any:
    """One array for all ranks: payload is not looked at."""
    if work.op == "dispatch" and work.kernel == "normal":
        return world.allocate((work.tokens, work.hidden), FP8), world.allocate(
            (work.tokens, work.hidden // 128), np.float32
        )
    return world.allocate((work.tokens, work.hidden), BF16)


def _normal(
    preset: Preset,
    work: Workload,
    step: Step,
    choices: list[Any],
    seed: int,
    timeline: bool,
    ready: Callable[[], None],
) -> Measured:
    wiring = wiring_of(step, None)
    qps, total = wiring.data_qps(work.channels), wiring.total_qps(work.channels)
    plan, loaded = _plan(preset, work, step, choices, qps, total)
    world = world_of(preset, proxy=step.proxy, fenced=step.fenced, seed=seed)
    hosts = [remote_tokens(c, work.experts, work.ranks) for c in choices]
    capacity = int(sum(h.sum(axis=0) for h in hosts).max())
    buffer = NormalBuffer(
        world,
        hidden=work.hidden,
        topk=work.topk,
        experts=work.experts,
        max_tokens=work.tokens,
        capacity=capacity,
        channels=work.channels,
        slots=work.slots,
        chunk=work.shape().chunk,
        wiring=wiring_of(step, plan),
    )
    for side in buffer.mesh.sides:
        world.add_gpu_memory(side.heap.memory, side.rank)
    weights = [np.full(c.shape, 0.125, np.float32) for c in choices]
    ready()
    started: list[Reading] = []
    begin = read(world)
    keeper = _Keeper(world, timeline, preset, work, step)
    x = [_inputs(world, work)] * work.ranks
    got = keeper.run(
        work.op == "dispatch",
        lambda: buffer.dispatch(x, choices, weights, exchanged=lambda: started.append(read(world))),
    )
    if work.op == "combine":
        begin = read(world)
        started = [begin]
        rows = [buffer.combine_rows(r, g.handle) for r, g in enumerate(got)]
        keeper.run(True, lambda: buffer.combine(rows, [g.handle for g in got]))
    after = read(world)
    if work.op == "dispatch":
        bad = [
            c
            for r, g in enumerate(got)
            for c in verify.check_routing(g, choices, weights, r, work.experts)
            if not c.ok
        ]
        if bad:
            raise BadState(
                "rows lie where the routing does not want them",
                value=bad[0].what,
                rule=bad[0].detail,
                remedy="report this: the device code, or the model, is wrong",
            )
    _conserves(begin, after, loaded)
    places = work.hosts if work.hosts > 1 else work.ranks
    visits = sum(int(remote_tokens(c, work.experts, places).sum()) for c in choices)
    logical = visits * work.row_bytes / work.ranks
    kernel = "ep_dispatch" if work.op == "dispatch" else "ep_combine"
    times = [t for t in world.launches if t.kernel == kernel]
    return _measured(preset, work, step, loaded, started[0], after, times, logical, keeper.timeline)


def _low_latency(
    preset: Preset,
    work: Workload,
    step: Step,
    choices: list[Any],
    seed: int,
    timeline: bool,
    ready: Callable[[], None],
) -> Measured:
    qps = min(step.qps or work.channels, work.channels)
    work = replace(work, channels=qps)
    plan, loaded = _plan(preset, work, step, choices, qps, qps)
    world = world_of(preset, proxy=step.proxy, seed=seed)  # most completions are no fence: those of single rows
    buffer = LowLatencyBuffer(
        world,
        hidden=work.hidden,
        topk=work.topk,
        experts=work.experts,
        max_tokens=work.tokens,
        qps_per_rank=qps,
        wiring=Wiring(fenced=step.fenced, steer=steer_by(plan)),
    )
    for side in buffer.mesh.sides:
        world.add_gpu_memory(side.heap.memory, side.rank)
    ready()
    begin = read(world)
    x = _inputs(world, work)
    keeper = _Keeper(world, timeline, preset, work, step)
    _, handles, _ = keeper.run(
        work.op == "dispatch", lambda: buffer.dispatch([x] * work.ranks, choices, use_fp8=True)
    )
    kernels = ("ll_dispatch_send", "ll_dispatch_receive")
    if work.op == "combine":
        begin = read(world)
        weights = [np.full(c.shape, 0.125, np.float32) for c in choices]
        rows = [buffer.combine_rows(r) for r in range(work.ranks)]
        keeper.run(True, lambda: buffer.combine(rows, handles, choices, weights))
        kernels = ("ll_combine_send", "ll_combine_receive")
    after = read(world)
    _conserves(begin, after, loaded)
    each = [int((np.asarray(c) >= 0).sum()) for c in choices]
    logical = sum(each) * work.row_bytes / work.ranks
    times = [t for t in world.launches if t.kernel in kernels]
    return _measured(preset, work, step, loaded, begin, after, times, logical, keeper.timeline)


class _Keeper:
    """Runs an operation, and keeps its timeline if that was asked for."""

    def __init__(self, world: Any, wanted: bool, preset: Preset, work: Workload, step: Step) -> None:
        self.world, self.wanted = world, wanted
        self._what = {
            "cluster": str(preset),
            "step": step.number,
            "kernel": work.kernel,
            "op": work.op,
            "time": "modelled",
        }
        self.timeline: Timeline | None = None

    def run(self, this: bool, call: Callable[[], Any]) -> Any:
        """`this`: it is the operation that is looked at."""
        if not (self.wanted and this):
            return call()
        found: list[Any] = []
        self.timeline = record(self.world, lambda: found.append(call()), self._what)
        return found[0]


def _conserves(before: Reading, after: Reading, plan: Plan) -> None:
    """Payload by port is what the plan says, to the byte; and all octets that left have arrived."""
    sent = after.payload - before.payload
    if not np.array_equal(sent, plan.port_bytes):
        host, nic, port = (int(i) for i in np.argwhere(sent != plan.port_bytes)[0])
        raise BadState(
            "a port has not carried what the plan says",
            value=int(sent[host, nic, port]),
            rule=f"{int(plan.port_bytes[host, nic, port])} bytes of payload",
            host=host,
            nic=nic,
            port=port + 1,
            remedy="report this: the model of traffic, or of the NIC, is wrong",
        )
    octets = int((after.octets - before.octets).sum()), int((after.received - before.received).sum())
    if octets[0] != octets[1]:
        raise BadState(
            "octets have left that did not arrive",
            value=octets[0] - octets[1],
            rule="sent equals received",
            remedy="report this: the model of the network is wrong",
        )


def _measured(
    preset: Preset,
    work: Workload,
    step: Step,
    plan: Plan,
    before: Reading,
    after: Reading,
    times: list[Any],
    logical: float,
    timeline: Timeline | None,
) -> Measured:
    begin = min(t.begin_ns for t in times)
    by_rank = [max(t.end_ns for t in times if t.rank == r) - begin for r in range(work.ranks)]
    launch = preset["kernel_launch"] / 1e3  # ns; once: the receiving half is launched while the sending one runs
    mean_ns, slowest = float(np.mean(by_rank)) + launch, max(by_rank) + launch
    wire = float((after.payload - before.payload).sum()) / work.ranks
    line = preset["port_rate"] * preset.count("ports") * preset.nics / preset.count("gpus_per_host")
    return Measured(
        step=step.number,
        microseconds=mean_ns / 1e3,
        slowest_us=slowest / 1e3,
        logical_gbs=logical / mean_ns,
        wire_gbs=wire / mean_ns,
        port_payload_fraction=wire / mean_ns * 1e9 / line,
        logical_bytes=logical,
        wire_bytes=wire,
        port_max_over_min=plan.port_max_over_min,
        spine_max_over_mean=plan.spine_max_over_mean,
        doorbells=after.doorbells - before.doorbells,
        wqes=after.wqes - before.wqes,
        usage=usage(before, after, slowest * 1e3),
        put_rows=work.shape().chunk if work.kernel == "normal" else 1,
        port_bytes=after.payload - before.payload,
        timeline=timeline,
    )
