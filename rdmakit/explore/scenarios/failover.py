"""Ports of a bond that go down and come up again while transfers are under way: the other port takes over, and all
arrives.

Bonded NICs with both ports; each end's port 1, which the queue pairs are bound to, is pulled and plugged again at
moments of their own, so that one path is up all the time. Nothing may leave by a port that is down. `tally` of the
scene counts the schedules in which traffic moved over in mid-dispatch and in which it came back. Leans on scenarios
lock and moe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import make_lock, transfer
from rdmakit.explore.scenarios.moe import low_latency, normal

__all__ = ["watch_ports"]

_TAGS = ("fault", "deep")


@dataclass
class _Cable:
    """Port 1 of the NIC of `host`: what both ports had sent when it was pulled, and when it was plugged again."""

    world: Any
    host: int
    ports: list[Any] = field(default_factory=list)
    pulled: list[int] | None = None
    plugged: list[int] | None = None

    def __post_init__(self) -> None:
        self.ports = self.world.open(self.host).ports

    def sent(self) -> list[int]:
        return [port.counters["xmit_packets"] for port in self.ports]

    def pull(self) -> None:
        self.pulled = self.sent()
        self.world.set_port_up(self.host, 0, 1, False)

    def plug(self) -> None:
        if self.pulled is not None:  # else it comes up before it has gone down: nothing to do
            self.plugged = self.sent()
            self.world.set_port_up(self.host, 0, 1, True)


def watch_ports(scene: Scene, within: int) -> None:
    """Each host's port 1 is pulled and plugged once, from one of the first `within` messages on; its packets are
    checked."""
    world = scene._world
    cables = [_Cable(world, host) for host in (0, 1)]
    for cable in cables:
        scene.act(cable.pull, within=within)
        scene.act(cable.plug, within=2 * within)

    def check() -> str:
        for cable in cables:
            pulled, plugged, sent = cable.pulled, cable.plugged, cable.sent()
            cable.pulled = cable.plugged = None
            if pulled is None:
                scene.tally["never down"] += 1
                if sent[1]:
                    return f"{sent[1]} packets of host {cable.host} left by port 2, and port 1 was up all the time"
                continue
            up_again = plugged or sent
            if up_again[0] != pulled[0]:
                return f"{up_again[0] - pulled[0]} packets of host {cable.host} left by a port that was down"
            moved = up_again[1] - pulled[1]
            scene.tally["moved over"] += bool(moved and pulled[0])
            scene.tally["came back"] += bool(plugged and moved and sent[0] > plugged[0])
            if plugged and sent[1] != plugged[1]:
                return f"{sent[1] - plugged[1]} packets of host {cable.host} left by port 2, and port 1 was up again"
        return ""

    scene.check(check)


def _bonded(scene: Scene) -> None:
    scene.options = {"lag": "affinity", **scene.options}


@scenario("lock-failover", "ports of a bond go down and come up while transfers are under way",
          tags=(*_TAGS, "quick", "lock"))
def lock_failover(scene: Scene) -> None:
    """Options as for `lock`, transfers=4, lag=affinity, within=10 (messages in which a port goes down)."""
    scene.options = {"transfers": 4, **scene.options}
    world = scene.world(hosts=2, ports=2, lag=str(scene.options.get("lag", "affinity")))
    transfer(scene, world, make_lock(scene, world))
    watch_ports(scene, int(scene.options.get("within", 10)))


@scenario("ep-normal-failover", "ports of a bond go down and come up in mid-dispatch", tags=(*_TAGS, "ep"))
def normal_failover(scene: Scene) -> None:
    """Options as for `ep-normal`, within=20 (messages in which a port goes down: those of the dispatch)."""
    _bonded(scene)
    normal(scene)
    watch_ports(scene, int(scene.options.get("within", 20)))


@scenario("ep-low-latency-failover", "ports of a bond go down and come up in mid-dispatch", tags=(*_TAGS, "ep"))
def low_latency_failover(scene: Scene) -> None:
    """Options as for `ep-low-latency`, within=6 (messages in which a port goes down: those of the dispatch)."""
    _bonded(scene)
    low_latency(scene)
    watch_ports(scene, int(scene.options.get("within", 6)))
