"""What primitives cost on a GPU: fences by scope, atomics, loads and stores, posting, doorbells, flags there and back.

Leans on bench_machine, bare. Kernels: cuda/kernels/primitive_costs.cu and flag_ping.cu. A cost is that of one step of a
chain in which every step needs the one before, the empty loop subtracted, the median of several launches; what memory
holds afterwards is checked. All is measured; bench_copies measures copies.

>>> from rdmakit.gpu import bench_primitives
>>> bench_primitives.primitives()["figures"]  # doctest: +SKIP
{'fence_cta_ns': …, 'fence_gpu_ns': …, 'fence_sys_peer_stores_ns': …, …}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rdmakit.device.handle import WATCH, struct
from rdmakit.device.report import Report
from rdmakit.gpu.bare import BareQueue, bare_handles, bare_report
from rdmakit.gpu.bench_machine import Call, GpuMachine, Machine, Region

__all__ = ["Cost", "flags", "posting", "primitives", "single"]

SCOPES = "cta", "gpu", "sys"
KINDS = (
    "empty", "stores", "fence", "load_relaxed", "load_acquire", "store_relaxed", "store_release", "fetch_add",
    "exchange", "compare_swap", "mmio", "shuffle", "barrier", "proxy_fence", "bulk_load",
)  # fmt: skip  # enum class Primitive, primitive_costs.cu
POSTINGS = "reserve", "write", "publish", "post"  # enum class Posting
ASK = struct(
    48, primitive=(0, "<u4"), scope=(4, "<u4"), rounds=(8, "<u4"), outstanding=(12, "<u4"), target=(16, "<u8"),
    lines=(24, "<u8"), start=(32, "<u8"), zero=(40, "<u8"),
)  # fmt: skip
TIME = struct(24, ns=(0, "<u8"), cycles=(8, "<u8"), value=(16, "<u8"))
FLAG_END = struct(40, mine=(0, "<u8"), theirs=(8, "<u8"), begins=(16, "<u8"), ns=(24, "<u8"), sum=(32, "<u8"))
OUTSTANDING = 4  # stores before a fence
_LOG_SQ, _QPN = 14, 0x4B00
_BARRIER_THREADS = 256
_STARTS_THERE = "fetch_add", "compare_swap", "load_relaxed", "load_acquire", "bulk_load"  # a chain's first value
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Cost:
    """Of one step: median, fastest and slowest launch in ns, `cycles` of the SM. `where`: the memory's place."""

    name: str
    where: str
    ns: float
    cycles: float
    least: float
    most: float
    ok: bool


@dataclass(frozen=True)
class _Step:
    kind: str
    scope: str = "gpu"
    where: str = "local"  # of the target; "shared" for none
    stores: str = ""  # place of the stores that precede each step
    threads: int = 32

    @property
    def name(self) -> str:
        if self.kind == "stores":
            return f"{OUTSTANDING}_stores_{self.stores}"
        scoped = self.kind in KINDS[2:10]
        parts = [self.kind, *([self.scope] if scoped else []), *([self.where] if self.where != "local" else [])]
        return "_".join([*parts, *([f"{self.stores}_stores"] if self.stores else [])])

    @property
    def place(self) -> str:
        return self.stores or self.where


def steps() -> list[_Step]:
    """Everything that is measured by one chain of one thread, warp or block."""
    found = [_Step("empty")]
    found += [_Step("fence", scope) for scope in SCOPES]
    found += [_Step("stores", stores=place) for place in ("local", "peer", "pinned")]
    found += [_Step("fence", scope, stores=place) for scope in SCOPES for place in ("local", "peer", "pinned")]
    found += [_Step("fetch_add", "cta", "shared"), _Step("fetch_add", "gpu"), _Step("fetch_add", "sys")]
    found += [_Step("fetch_add", "sys", place) for place in ("pinned", "peer")]
    found += [_Step(kind) for kind in ("exchange", "compare_swap")]
    for kind in ("load_relaxed", "load_acquire", "store_relaxed", "store_release"):
        found += [_Step(kind, scope) for scope in SCOPES]
        found += [_Step(kind, "sys", place) for place in ("peer", "pinned")]
    found += [_Step("mmio", where=place) for place in ("local", "pinned")]
    found += [_Step("shuffle", where="shared"), _Step("barrier", where="shared", threads=_BARRIER_THREADS)]
    return [*found, _Step("proxy_fence", where="shared"), _Step("bulk_load"), _Step("bulk_load", where="peer")]


def _watch(report: Report) -> Any:
    watch = np.zeros((), WATCH)
    watch["report"] = report.address
    return watch[()]


def _mixed(start: int, rounds: int) -> int:
    """What `next_of` of primitive_costs.cu leaves after `rounds` steps."""
    for i in range(rounds):
        start = (start + (start ^ i)) & _MASK
    return start


class _Chains:
    """Runs chains, and holds what they leave against what it must be."""

    def __init__(self, machine: Machine, rounds: int, repeats: int, rng: np.random.Generator) -> None:
        self.machine, self.rounds, self.repeats, self.rng = machine, rounds, repeats, rng
        self.report = machine.report()
        self.regions: dict[str, Region] = {}
        self.time = machine.region("local", TIME.itemsize)

    def region(self, where: str) -> Region:
        if where not in self.regions:
            self.regions[where] = self.machine.region(where, 128 * (OUTSTANDING + 1))
        return self.regions[where]

    def once(self, step: _Step) -> tuple[int, int, bool]:
        """Nanoseconds and cycles of a launch, and whether all is as it must be."""
        start = int(self.rng.integers(1, 1 << 62))
        target = None if step.where == "shared" else self.region(step.where)
        lines = self.region(step.stores) if step.stores else None
        for region in (target, lines):
            if region is not None:
                region.fill(0x6E)
        if target is not None and step.kind in _STARTS_THERE:
            target.write(np.array([start], np.uint64))
        self.time.fill(0)
        ask = np.zeros((), ASK)
        ask["primitive"], ask["scope"], ask["rounds"] = KINDS.index(step.kind), SCOPES.index(step.scope), self.rounds
        ask["outstanding"] = OUTSTANDING if lines is not None else 0
        ask["target"] = 0 if target is None else target.address
        ask["lines"] = 0 if lines is None else lines.address + 128
        ask["start"] = start
        args = (ask[()], self.time.address, _watch(self.report))
        self.machine.run([Call("primitive_cost", 1, step.threads, args)])
        self.report.raise_for_status()
        (time,) = self.time.read(TIME, 1)
        right = self.right(step, start, int(time["value"]), target, lines)
        return int(time["ns"]), int(time["cycles"]), right

    def right(self, step: _Step, start: int, value: int, target: Region | None, lines: Region | None) -> bool:
        n, kind = self.rounds, step.kind
        last = None if target is None else int(target.read(np.uint64, 1)[0])
        if lines is not None:
            stored = lines.read(np.uint32, 32 * (OUTSTANDING + 1)).reshape(-1, 32)[1:, :4]
            index = np.arange(OUTSTANDING)
            if not (stored == np.stack([np.full(OUTSTANDING, n - 1), index] * 2, 1)).all():
                return False
        if kind == "fetch_add":
            return value == start + n - 1 and last in (None, start + n)
        if kind == "compare_swap":
            return value == last == start + n
        if kind == "exchange":
            return value == start + n - 2 and last == start + n - 1
        if kind == "shuffle":
            return value == start + n
        if kind.startswith("load") or kind == "bulk_load":
            return value == start == last
        if kind.startswith("store_") or kind == "mmio":
            return value == _mixed(start, n) and last == start + n - 1
        return value == _mixed(start, n)


def _median(name: str, where: str, runs: list[tuple[int, int, bool]], rounds: int, empty: Cost | None) -> Cost:
    ns, cycles = (np.array([run[i] for run in runs], np.float64) / rounds for i in (0, 1))
    less_ns, less_cycles = (empty.ns, empty.cycles) if empty is not None else (0.0, 0.0)
    return Cost(
        name, where, max(0.0, float(np.median(ns)) - less_ns), max(0.0, float(np.median(cycles)) - less_cycles),
        max(0.0, float(ns.min()) - less_ns), max(0.0, float(ns.max()) - less_ns), all(run[2] for run in runs),
    )  # fmt: skip


def single(machine: Machine, *, rounds: int = 10_000, repeats: int = 7, seed: int = 1) -> list[Cost]:
    """One after the other; those whose place is missing are left out. The first is the empty loop."""
    chains = _Chains(machine, rounds, repeats, np.random.default_rng(seed))
    found: list[Cost] = []
    for step in steps():
        if step.place in machine.missing or step.where in machine.missing:
            continue
        chains.once(step)  # code and pages come near
        runs = [chains.once(step) for _ in range(repeats)]
        found.append(_median(step.name, step.place, runs, rounds, found[0] if found else None))
    return found


def posting(machine: Machine, *, rounds: int = 10_000, repeats: int = 7) -> list[Cost]:
    """The send queue's own path, by one thread, with nobody behind it: reservation, WQE, publication, all of it."""
    rounds = min(rounds, 1 << _LOG_SQ)  # the ring never fills: nobody completes anything
    found = []
    for number, what in enumerate(POSTINGS):
        runs = [_posted(machine, number, rounds) for _ in range(repeats + 1)][1:]
        found.append(_median(f"wqe_{what}", "local", runs, rounds, None))
    return found


def _posted(machine: Machine, what: int, rounds: int) -> tuple[int, int, bool]:
    memory = machine.memory(BareQueue.bytes_for(_LOG_SQ) + (1 << 14))
    report, report_at = bare_report(memory)
    handles, handles_at = bare_handles(memory, 1)
    # A batch that never fills: `publish` rings where no later reservation follows, that is behind the last.
    queue = BareQueue.lay_out(memory, handles[0], _QPN, _LOG_SQ, report_at, batch=1 << 31)
    time, time_at = memory.take(1, TIME)
    memory.upload()
    machine.run([Call("posting_cost", 1, 32, (handles_at, what, rounds, time_at))])
    memory.download()
    report.raise_for_status()
    return int(time[0]["ns"]), int(time[0]["cycles"]), _posted_right(queue, POSTINGS[what], rounds, time[0])


def _posted_right(queue: BareQueue, what: str, rounds: int, time: Any) -> bool:
    reserved, ready, rung = (int(queue.state[0][name]) for name in ("reserved", "ready", "rung"))
    if what == "reserve":
        return (reserved, ready, rung, int(time["value"])) == (rounds, 0, 0, rounds - 1)
    first = queue.ring.view(">u4").reshape(-1, 16)[:rounds, 0]
    written = np.array_equal((first >> 8) & 0xFFFF, np.arange(rounds) & 0xFFFF)
    if what == "write":
        return written and (reserved, ready) == (0, 0)
    bells = int(queue.state[0]["doorbells"])
    rang = bells == (rounds if what == "post" else 1)
    return written and rang and (reserved, ready, rung) == (rounds, rounds, rounds) and int(time["value"]) == 0


def flags(machine: Machine, *, rounds: int = 5_000, warm: int = 100, repeats: int = 5) -> list[Cost]:
    """A word there and back: between two blocks of a GPU, between two GPUs, between a GPU and a thread of the host."""
    found = []
    for name, scope_of_gpu, places in (
        ("flag_round_trip_gpu_scope", 1, ("local", "local")),
        ("flag_round_trip_sys_scope", 0, ("local", "local")),
        ("flag_round_trip_peer", 0, ("local", "peer")),
        ("flag_round_trip_host", 0, ("pinned", "pinned")),
    ):
        if set(places) & set(machine.missing):
            continue
        runs = [_rounds(machine, scope_of_gpu, places, warm, rounds) for _ in range(repeats)]
        found.append(_median(name, places[1], [(ns, 0, right) for ns, right in runs], rounds - warm, None))
    return found


def _rounds(machine: Machine, gpu_scope: int, places: tuple[str, str], warm: int, rounds: int) -> tuple[int, bool]:
    """Each end waits at a flag of its own place; the ends of one GPU are blocks of one grid."""
    flag = [machine.region(place, 128) for place in places]
    here = "local", "local" if places[1] != "peer" else "peer"
    ends = [machine.region(place, 2 * FLAG_END.itemsize) for place in here]
    report = machine.report()
    pods = np.zeros(2, FLAG_END)
    for i in range(2):
        pods[i]["mine"], pods[i]["theirs"], pods[i]["begins"] = flag[i].address, flag[1 - i].address, 1 - i
    one_grid = places == ("local", "local")
    ends[0].write(pods if one_grid else pods[:1])
    ends[1].write(pods[1:])
    rest = (gpu_scope, warm, rounds, _watch(report))
    calls = [Call("flag_ping", 2 if one_grid else 1, 32, (ends[0].address, *rest))]
    if places[1] == "peer":
        calls.append(Call("flag_ping", 1, 32, (ends[1].address, *rest), gpu=1))
    if places[1] == "pinned":
        machine.answer(calls[0], flag[1], flag[0], rounds)
    else:
        machine.run(calls)
    report.raise_for_status()
    done = list(ends[0].read(FLAG_END, 2 if one_grid else 1))
    done += list(ends[1].read(FLAG_END, 1)) if places[1] == "peer" else []
    total = rounds * (rounds + 1) // 2
    return int(done[0]["ns"]), all(int(end["sum"]) == total for end in done)


def primitives(
    machine: Machine | None = None, *, rounds: int = 10_000, repeats: int = 7, seed: int = 1
) -> dict[str, Any]:
    """All of them: `ok`, `figures` (name → ns), `costs` (Cost as dicts), `lines`, and what is `missing` and why."""
    machine = machine or GpuMachine()
    costs = single(machine, rounds=rounds, repeats=repeats, seed=seed)
    costs += posting(machine, rounds=rounds, repeats=repeats)
    costs += flags(machine, rounds=max(2, rounds // 2), warm=rounds // 100, repeats=repeats)
    lines = [f"{'primitive':<34} {'memory':<7} {'ns':>9} {'cycles':>8} {'least':>9} {'most':>9}  result"]
    lines += [
        f"{c.name:<34} {c.where:<7} {c.ns:>9.1f} {f'{c.cycles:.0f}' if c.cycles else '':>8} "
        f"{c.least:>9.1f} {c.most:>9.1f}  {'right' if c.ok else 'WRONG'}"
        for c in costs
    ]
    lines += [f"left out, {place}: {why}" for place, why in machine.missing.items()]
    return {
        "ok": all(cost.ok for cost in costs),
        "device": machine.device,
        "figures": {f"{cost.name}_ns": cost.ns for cost in costs},
        "costs": [asdict(cost) for cost in costs],
        "lines": lines,
        "missing": dict(machine.missing),
    }
