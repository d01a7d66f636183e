"""The parts of `rdmakit bench emu`: message rate, eight ranks of real payload, 64 ranks of control traffic, linearity.

Leans on all layers below. Every function returns `ok`, `figures` and the `lines` to print; all times are measured wall
time of the emulation, not the virtual time of what is emulated.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["ep8", "linear", "queue", "ranks64"]

BF16 = ml_dtypes.bfloat16


def queue(*, seed: int, words: int = 1 << 21, batch: int = 32, warps: int = 4, **_: Any) -> dict[str, Any]:
    """8-byte WRITEs through one HCA: device code reserves, publishes, rings (at most `batch` a doorbell), polls."""
    import rdmakit

    world = rdmakit.World(hosts=2, ports=1, policy="fast", seed=seed)
    ends = []
    for host in range(2):
        context = world.open(host, 0)
        pd = context.alloc_pd()
        memory = world.array((words,), np.uint64)
        ends.append((context, pd, memory, pd.register(memory)))
    (a, pd_a, source, mr_a), (b, pd_b, sink, mr_b) = ends
    source[:] = np.random.default_rng(seed).integers(0, 2**63, words, dtype=np.uint64)
    sink[:] = 0xDEAD_BEEF
    qps_a, qps_b = [], []
    for _warp in range(warps):  # a QP a warp: a doorbell then never covers another warp's batch
        qps_a.append(pd_a.create_qp(a.create_cq(1024), sq_wqebbs=1024))
        qps_b.append(pd_b.create_qp(b.create_cq(1024), sq_wqebbs=1024))
        qps_a[-1].connect(qps_b[-1])
        qps_b[-1].connect(qps_a[-1])
    handles = [qp.device_handle() for qp in qps_a]
    kernel = world.stock_kernel("put_words")
    share = words // warps
    began = time.perf_counter()
    for i, handle in enumerate(handles):
        to = np.array([(mr_b.address + 8 * i * share, mr_b.rkey)], _MEMORY)[0]
        origin = np.array([(mr_a.address + 8 * i * share, mr_a.lkey)], _MEMORY)[0]
        kernel((1,), (32,), (handle.array, to, origin, share, batch), rank=0, stream=i)
    world.run()
    seconds = time.perf_counter() - began
    for handle in handles:
        handle.report.raise_for_status()
    counters = a.counters
    right = bool(np.array_equal(source, sink))
    polled = sum(int(qp.completed) for qp in qps_a)
    ok = right and counters["cqes"] == words and polled == words and counters["doorbells"] * batch >= words
    rate = words / seconds
    return {
        "ok": ok,
        "figures": {"wqe_per_s": rate},
        "lines": [
            f"  {rate / 1e6:.2f} M WQE/s (goal 2): {words} WRITEs of 8 bytes, {counters['doorbells']} doorbells, "
            f"{polled} completions polled, words {'equal' if right else 'DIFFER'}"
        ],
    }


_MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)


def _tokens(count: int, hidden: int, seed: int) -> Any:
    """BF16 noise, cheaply: random mantissas and signs, exponents of values between 1/2 and 2."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (count, hidden), dtype=np.uint16)
    return ((bits & 0x80FF) | 0x3F00).view(BF16)


def _round_trip(
    world: Any,
    tokens: int,
    hidden: int,
    seed: int,
    check: bool,
    clock: Callable[[], float] = time.perf_counter,
    **buffer: Any,
) -> tuple[float, bool, int]:
    """One normal dispatch and combine; returns seconds by `clock`, whether every check held, how many there were."""
    from rdmakit.ep import routing, verify
    from rdmakit.ep.normal import NormalBuffer

    ranks = world.topology.hosts * world.topology.gpus_per_host
    experts = 256
    chosen = [routing.uniform(tokens, num_experts=experts, top_k=8, seed=seed + r) for r in range(ranks)]
    idx, weights = [c.topk_idx for c in chosen], [c.topk_weights for c in chosen]
    x = [_tokens(tokens, hidden, seed + r) for r in range(ranks)]
    moe = NormalBuffer(world, hidden=hidden, topk=8, experts=experts, max_tokens=tokens, **buffer)
    began = clock()
    got = moe.dispatch(x, idx, weights)
    seconds = clock() - began
    y = []
    for r, mine in enumerate(got):  # the expert: rows with their channels reversed
        rows = moe.combine_rows(r, mine.handle)
        rows[:] = mine.recv_x[:, ::-1]
        y.append(rows)
    began = clock()
    out, _ = moe.combine(y, [g.handle for g in got])
    seconds += clock() - began
    checks = []
    if check:
        checks = list(verify.check_dispatched(got, x, idx, weights, experts))
        checks += verify.check_combined(out, y, idx, experts, world.topology.gpus_per_host)
    else:  # control traffic only: counts and places are still true
        for r, mine in enumerate(got):
            checks += verify.check_routing(mine, idx, weights, r, experts)
    return seconds, all(c.ok for c in checks), len(checks)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def ep8(*, tokens: int, hidden: int, seed: int) -> dict[str, Any]:
    """Eight ranks on four hosts: normal dispatch + combine of real payload, every byte checked afterwards."""
    import rdmakit

    world = rdmakit.World(hosts=4, gpus_per_host=2, ports=2, policy="fast", seed=seed)
    seconds, ok, checks = _round_trip(world, tokens, hidden, seed, check=True)
    peak = _peak_gib()
    return {
        "ok": ok,
        "figures": {"ep8_dispatch_combine_s": seconds, "ep8_peak_gib": peak},
        "lines": [
            f"  {seconds:.2f} s (goal 60), peak {peak:.2f} GiB (goal 8; checks included): 8 ranks x {tokens} tokens x "
            f"{hidden} BF16, top-8 of 256, dispatch + combine; {checks} checks {'hold' if ok else 'FAIL'}"
        ],
    }


def ranks64(*, seed: int, tokens: int = 0, hidden: int = 7168, **_: Any) -> dict[str, Any]:
    """64 ranks on eight hosts, 128 tokens each: all control traffic, payload not copied."""
    import rdmakit

    world = rdmakit.World(hosts=8, gpus_per_host=8, ports=2, policy="fast", seed=seed)
    world.copy_payload = False
    began = time.perf_counter()
    seconds, ok, checks = _round_trip(world, 128, hidden, seed, check=False, channels=4, slots=32, chunk=8)
    total = time.perf_counter() - began
    return {
        "ok": ok,
        "figures": {"ranks64_control_s": seconds},
        "lines": [
            f"  {seconds:.2f} s (goal 60; {total:.1f} s with setting up): 64 ranks x 128 tokens, payload not copied; "
            f"{checks} checks of counts and places {'hold' if ok else 'FAIL'}"
        ],
    }


def linear(*, seed: int, hidden: int = 7168, **_: Any) -> dict[str, Any]:
    """Cost of eight ranks over tokens: seconds of this process's CPU, and scheduler steps, which no neighbour disturbs.

    A run has a fixed cost, so what must stay level is what each further token costs.
    """
    import rdmakit

    rows, ok = [], True
    for tokens in (64, 1024, 2048, 4096, 8192):
        world = rdmakit.World(hosts=4, gpus_per_host=2, ports=2, policy="fast", seed=seed)
        seconds, held, _count = _round_trip(world, tokens, 1024, seed, check=True, clock=time.process_time)
        ok = ok and held
        if tokens > 64:  # the first, a small one, loads the kernels and is not counted
            rows.append((tokens, seconds, sum(world.counters[name] for name in ("switches", "events"))))
    count, cpu, steps = np.array(rows, float).T
    exponent = float(np.polyfit(np.log(count), np.log(cpu), 1)[0])
    further = np.diff(steps) / np.diff(count)
    growth = float(further[-1] / further[0])
    grows_faster = 1.15  # than tokens, by more than noise
    return {
        "ok": ok and exponent < grows_faster and growth < grows_faster,
        "figures": {"linear_exponent": exponent, "linear_steps_growth": growth},
        "lines": [
            f"  {t:5d} tokens a rank: {s:.3f} s of CPU, {1e6 * s / (8 * t):.1f} us a token; {n} scheduler steps"
            for t, s, n in rows
        ]
        + [
            f"  CPU time grows as tokens to the power {exponent:.2f} (linear is 1, the fixed cost makes it less)",
            f"  each further token: {', '.join(f'{n / 8:.2f}' for n in further)} steps; last over first {growth:.2f}",
        ],
    }
