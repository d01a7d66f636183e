"""Notebook 00: two hosts, one dead port, and the counters of the host that one may look at."""

from __future__ import annotations

import random
from typing import Any

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, short
from rdmakit.device import QP, connected_pair
from rdmakit.emu import World

Key = tuple[int, int]  # NIC, port
Counters = dict[Key, dict[str, int]]
_NICS, _PORTS = 3, (1, 2)
_ROUNDS = 6


def _traffic(dice: random.Random, world: World, pairs: dict[Key, tuple[QP, QP]], idle: set[Key]) -> None:
    """A WRITE of random size from every port that is not idle; towards a dead port it ends in an error."""
    for port, (near, far) in pairs.items():
        if port in idle:
            continue
        source, target = near.pd.register(world.array(1 << 16)), far.pd.register(world.array(1 << 16))
        near.post_write(source[: dice.randrange(1, 1 << 16)], target)
        near.send_cq.wait(check=False)


def _play(seed: int) -> tuple[Counters, Counters, Key]:
    dice = random.Random(seed)
    world = World(hosts=2, gpus_per_host=_NICS, seed=seed)
    here = [world.open(0, nic) for nic in range(_NICS)]
    there = [world.open(1, nic) for nic in range(_NICS)]
    ports = [(nic, port) for nic in range(_NICS) for port in _PORTS]
    pairs = {(nic, port): connected_pair(here[nic], there[nic], port=port) for nic, port in ports}
    down, *idle = dice.sample(ports, 3)

    def counters() -> Counters:
        return {(nic, port): here[nic].port(port).counters for nic, port in ports}

    for _ in range(dice.randrange(2, 5)):
        # Some ports have never been used: what stands in a counter says nothing, only its change does.
        _traffic(dice, world, pairs, {idle[0]})
    before = counters()
    world.set_port_up(1, *down, up=False)
    _traffic(dice, world, pairs, set(idle))
    return before, counters(), down


def cabinet(seed: int = 1) -> tuple[Counters, Counters]:
    """Counters of host 0 by ``(nic, port)``, before and after a round of traffic; one far port is down.

    >>> before, after = cabinet(seed=1)
    >>> sorted(after) == [(nic, port) for nic in (0, 1, 2) for port in (1, 2)]
    True
    """
    before, after, _ = _play(seed)
    return before, after


@exercise(
    "00.find_down",
    hints=(
        "A dead port neither hears nor answers. Which of your own counters moves when somebody answers you?",
        "Only the change between the snapshots counts. Who sent nothing is not answered, and may be well.",
        "Look for a port that talked in this round and was left without a single packet in return.",
    ),
)
def find_down(trial: Trial, function: Any) -> None:
    """The `(nic, port)` whose twin is down, in cabinets of several seeds."""
    for seed in range(1, _ROUNDS + 1):
        before, after, down = _play(seed)
        ports = list(after)
        answer = trial.call(function, before, after)
        what = f"what find_down returns for cabinet(seed={seed})"
        trial.is_a(answer, tuple, what)
        trial.require(answer in ports, f"{what} is {short(answer)}; it should be a key, such as {ports[0]}")
        trial.require(answer == down, f"{what} is {answer}, but the twin of that port is up")
