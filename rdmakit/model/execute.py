"""The planner on real devices: a preset from what was opened, a plan for its queue pairs, and what became of it.

Leans on plan, cluster, preset and connect. `connect_mesh(…, steer=steer_by(plan))` executes a plan; how, depends on the
device: LAG affinity, the UDP source port, the port or the device that a queue pair is made on. Afterwards the queue
pairs are asked where they leave, and the ports what they counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdmakit.connect import ConnectedMesh, Path
from rdmakit.errors import BadState
from rdmakit.model.plan import Plan, make_plan
from rdmakit.model.preset import Preset, load

__all__ = ["check_executed", "executed", "plan_for", "preset_of"]

_BASE = {"Ethernet": "roce", "InfiniBand": "ib"}


def preset_of(paths: Sequence[Path], ranks: int, ranks_per_host: int = 1) -> Preset:
    """The cluster that these ways out make, if all ranks have such: ports, bond, link layer, MTU, speed.

    A bond whose mode the device does not tell counts as one that takes queue affinity; where that is refused,
    `changed(lag="hash")` plans source ports. What ports and hosts do not say (switches, latencies) is the base
    preset's.
    """
    first = paths[0]
    info, lag = first.context.ib_port(first.ib_port), first.context.device.lag
    bonded = "affinity" if lag == "bond" else lag
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
    policy: str = "planned", traffic: Any = None,
) -> Plan:  # fmt: skip
    """A plan for `channels` queue pairs of each two ranks. The same on every rank, from what each knows of itself."""
    preset = preset_of(paths, ranks, ranks_per_host)
    return make_plan(preset, kernel, channels=channels, policy=policy, traffic=traffic)


def executed(plan: Plan, mesh: ConnectedMesh) -> list[dict[str, int]]:
    """A row for each queue pair of this rank: what was planned, and what the device says (`seen_…`; 0: it does not)."""
    rows = []
    for (peer, index), joined in sorted(mesh.joined.items()):
        flow, seen = plan.flow(mesh.rank, peer, index), joined.qp.query()
        at = seen["physical_port"] if len(joined.path.context.ports) > 1 else joined.route.port
        rows.append({
            "peer": peer, "channel": index, "qpn": joined.qp.qpn, "port": flow.port, "source_port": flow.source_port,
            "seen_port": int(at), "seen_source_port": int(seen["udp_source_port"]),
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
