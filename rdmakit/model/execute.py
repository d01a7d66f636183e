"""The planner on real devices: a preset from what was opened, a plan for its queue pairs, and what became of it.

Leans on plan, cluster, preset and connect. `connect_mesh(…, steer=steer_by(plan))` executes a plan; how, depends on the
device: LAG affinity, the UDP source port, the port or the device that a queue pair is made on. Afterwards the queue
pairs are asked where they leave, and the ports what they counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdmakit.connect import ConnectedMesh, Joined, Path
from rdmakit.errors import BadState, NotAvailable
from rdmakit.model.plan import Plan, make_plan
from rdmakit.model.preset import Preset, load

__all__ = ["check_executed", "executed", "plan_for", "preset_of"]

_BASE = {"Ethernet": "roce", "InfiniBand": "ib"}


def preset_of(paths: Sequence[Path], ranks: int, ranks_per_host: int = 1, lag: str | None = None) -> Preset:
    """The cluster that these ways out make, if all ranks have such: ports, bond, link layer, MTU, speed.

    `lag`: how a bond spreads queue pairs, "affinity" or "hash", where the device does not tell; affinity without it. If
    it hashes, `ConnectedMesh.table` says so, and a plan of source ports is wanted. What ports and hosts do not say
    (switches, latencies) is the base preset's.
    """
    first = paths[0]
    info, told = first.context.ib_port(first.ib_port), first.context.device.lag
    bonded = lag or ("affinity" if told == "bond" else told)
    values: dict[str, Any] = {
        "hosts": ranks // ranks_per_host, "gpus_per_host": ranks_per_host, "nics_per_gpu": 1, "ports": len(paths),
        "device_ports": len(paths),
        "lag": bonded if len(paths) > 1 else "none", "mtu": info.mtu,
    }  # fmt: skip
    if info.bytes_per_second:
        values["port_rate"] = f"{info.bytes_per_second * 8 / 1e9:g} Gb/s"
    return load(_BASE[info.link_layer]).changed(**values)


def plan_for(
    paths: Sequence[Path], ranks: int, *, channels: int, ranks_per_host: int = 1, kernel: str = "ll",
    policy: str = "planned", traffic: Any = None, lag: str | None = None,
) -> Plan:  # fmt: skip
    """A plan for `channels` queue pairs of each two ranks. The same on every rank, from what each knows of itself."""
    preset = preset_of(paths, ranks, ranks_per_host, lag)
    return make_plan(preset, kernel, channels=channels, policy=policy, traffic=traffic)


def _seen_port(mesh: ConnectedMesh, joined: Joined) -> int:
    """By which of the rank's ports it leaves, as the device says; 0 where it does not: a bond that hashes."""
    path, said = joined.path, int(joined.qp.query()["physical_port"])
    if path.lag_port and len(path.context.ports) == 1:
        try:
            said = joined.qp.lag_port[1]
        except NotAvailable:
            return 0
    found = [number for number, way in enumerate(mesh.paths, 1) if way.context is path.context and way.physical == said]
    return found[0] if found else 0


def executed(plan: Plan, mesh: ConnectedMesh) -> list[dict[str, int]]:
    """A row for each queue pair of this rank: what was planned, and what the device says (`seen_…`; 0: it does not)."""
    rows = []
    for (peer, index), joined in sorted(mesh.joined.items()):
        flow = plan.flow(mesh.rank, peer, index)
        rows.append({
            "peer": peer, "channel": index, "qpn": joined.qp.qpn, "port": flow.port, "source_port": flow.source_port,
            "seen_port": _seen_port(mesh, joined), "seen_source_port": joined.qp.udp_sport,
        })  # fmt: skip
    return rows


def check_executed(plan: Plan, mesh: ConnectedMesh, *, most: float = 1.15) -> list[dict[str, int]]:
    """`executed`, when every queue pair leaves as planned and the ports moved what the plan says, within `most`.

    BadState names the first queue pair that leaves elsewhere, or the ports whose share is another. Shares are of bytes
    where devices count them, else of what was posted.
    """
    rows = executed(plan, mesh)
    for what in ("port", "source_port"):
        for row in rows:
            if row[what] != row[f"seen_{what}"] and row[f"seen_{what}"]:
                raise BadState(
                    f"a queue pair leaves by another {what.replace('_', ' ')} than planned", value=row[f"seen_{what}"],
                    rule=f"{row[what]}, by {plan.mechanism}", rank=mesh.rank, peer=row["peer"], channel=row["channel"],
                    qpn=hex(row["qpn"]), remedy="see ConnectedMesh.table(): how each was steered",
                )  # fmt: skip
    moved, unit = mesh.moved()
    flows = plan.flows[plan.flows["rank"] == mesh.rank]
    planned = [int(flows["bytes"][flows["port"] == 1 + number].sum()) for number in range(len(mesh.paths))]
    total, whole = sum(moved), sum(planned)
    for number, (count, share) in enumerate(zip(moved, planned, strict=True), 1):
        if count * whole > most * share * total or share * total > most * count * whole:
            seen = f"{count} of {total} {unit} at port {number}"
            raise BadState("a port moved another share than planned", value=seen,
                           rule=f"{share} of {whole}, within {most:g}", rank=mesh.rank,
                           remedy="plan with the traffic that it did not know, or more tokens a call")  # fmt: skip
    return rows
