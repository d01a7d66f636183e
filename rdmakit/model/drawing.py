"""Plans as pictures: which way one rank's channels go, what each port carries, what each link of the fabric carries.

Leans on show and plan.
"""

from __future__ import annotations

from rdmakit import show
from rdmakit.errors import BadArgument
from rdmakit.model.fabric import DIRECT
from rdmakit.model.ladder import Ladder
from rdmakit.model.plan import Plan
from rdmakit.model.steps import STEPS

__all__ = ["ladder_usage", "ladder_waterfall", "link_map", "plan_ports", "rank_routes", "ratio"]

_MOST_BARS = 64
_MOST_LINES = 64


def rank_routes(plan: Plan, rank: int = 0) -> show.Figure:
    """Peer → queue pair → port → spine of one rank."""
    mine = [f for f in plan if f.rank == rank]
    if not mine:
        raise BadArgument(
            "that rank has no queue pairs",
            value=rank,
            rule=f"0 … {plan.preset.ranks - 1}, and hosts > 1",
            remedy="another rank",
        )
    single = len(mine) <= _MOST_LINES
    heads = ["peer", "queue pair" if single else "channel", "port", "spine"]
    local = plan.preset.count("gpus_per_host")
    by_host = len({f.peer for f in mine}) > _MOST_LINES
    hosts = _stations("host", {f.peer // local for f in mine})
    channels = _stations("channel", {f.channel for f in mine})
    spines = _stations("spine", {f.spine for f in mine}) | {DIRECT: "same leaf"}
    routes = [
        (
            hosts[f.peer // local] if by_host else f"rank {f.peer}",
            f"QP {f.qp} (channel {f.channel})" if single else channels[f.channel],
            f"port {f.port}",
            spines[f.spine],
            f.bytes,
        )
        for f in mine
    ]
    return show.route_map(
        heads, routes, title=f"rank {rank}: {len(mine)} queue pairs by {plan.mechanism}, {plan.policy}", colour_by=2
    )


def _stations(name: str, numbers: set[int]) -> dict[int, str]:
    """What each number is called, neighbours together where a column would have too many."""
    last = max(numbers)
    width = 1 if len(numbers) <= _MOST_LINES else -(-(last + 1) // (_MOST_LINES - 1))
    if width == 1:
        return {n: f"{name} {n}" for n in numbers}
    return {n: f"{name}s {n - n % width} … {min(n - n % width + width - 1, last)}" for n in numbers}


def plan_ports(plan: Plan) -> show.Figure:
    """Bytes of each port; of a large cluster those NICs whose ports differ most."""
    loads = plan.port_bytes
    nics = [(host, nic) for host in range(loads.shape[0]) for nic in range(loads.shape[1])]
    shown = nics
    if loads.size > _MOST_BARS:
        spread = {n: (loads[n].max() + 1) / (loads[n].min() + 1) for n in nics}
        shown = sorted(sorted(nics, key=lambda n: -spread[n])[: _MOST_BARS // loads.shape[2]])
    bars = [
        (f"host {h} mlx5_{n} port {p + 1}", int(loads[h, n, p]), f"port {p + 1}")
        for h, n in shown
        for p in range(loads.shape[2])
    ]
    where = "" if len(shown) == len(nics) else f" (the {len(shown)} most uneven NICs of {len(nics)})"
    return show.port_bars(
        bars, title=f"busiest / idlest port of a NIC, at worst: {ratio(plan.port_max_over_min)}{where}"
    )


def link_map(plan: Plan) -> show.Figure | None:
    """Megabytes up from each leaf to each spine; None when nothing crosses spines, or there are too many leaves."""
    loads = plan.spine_bytes[0]
    if not loads.any() or max(loads.shape) > _MOST_LINES:
        return None
    title = f"busiest link between leaves and spines: {plan.spine_max_over_mean:.3f} times the mean"
    return show.heat_map(
        loads / 1e6,
        [f"leaf {i}" for i in range(len(loads))],
        [f"s{i}" for i in range(loads.shape[1])],
        title=title,
        unit="MB",
        down="up from",
        across="to spine",
    )


def ratio(value: float) -> str:
    """The busiest port over the idlest, in words where it is endless."""
    return "∞, a port is idle" if value == float("inf") else f"{value:.3f}"


def ladder_waterfall(ladder: Ladder) -> show.Figure:
    """What each step adds, in logical GB/s, with bands over seeds, and the most that ports allow."""
    banded = len(ladder.runs) > 1
    steps = [
        (f"{s.number} {s.title}", ladder.gbs(s.number), *(ladder.band(s.number) if banded else ())) for s in STEPS
    ]
    last = ladder.steps[-1]
    line = last.logical_gbs / last.port_payload_fraction  # all ports full of payload
    gain = f"{ladder.gain_total:.2f} times, step 0 to step {STEPS[-1].number}"
    return show.waterfall(
        steps,
        "GB/s",
        title=f"{ladder.preset.name}, EP{ladder.work.ranks}: {gain} (modelled)",
        marks=[("ports full of payload", line)],
    )


def ladder_usage(ladder: Ladder) -> show.Table:
    """Resources by step: for how much of the time the busiest of each works."""
    names = [n for n in ladder.steps[0].usage.busiest if any(s.usage.busiest[n] >= 0.005 for s in ladder.steps)]
    rows = [[name, *(f"{s.usage.busiest[name]:.0%}" for s in ladder.steps)] for name in names]
    if ladder.work.kernel == "normal":
        rows.append(["(rows of a put)", *(str(s.put_rows) for s in ladder.steps)])
    return show.data_table(
        rows,
        ["busy, of the time", *(f"step {s.step}" for s in ladder.steps)],
        title="where the time goes: the busiest of each resource",
    )
