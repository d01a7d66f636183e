"""Many ranks examined at once: each looks at its machine, then all pairs meet; one report of all, by rank 0.

Leans on check, machine, pairs, schema. The verdict of a check is the gravest of all ranks', and says which ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rdmakit.cli.doctor.check import VERDICTS, Answer, Check, Result, failed, passed, skipped, warned
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.pairs import Place, Reach, reach
from rdmakit.cli.doctor.ports import counted
from rdmakit.errors import BadArgument

__all__ = ["AGREEMENT", "REACH", "agreement", "examine_all", "merged", "rails_of", "reachability", "table"]


def _among_ranks(machine: Machine) -> Answer:
    del machine
    return skipped("one process: no ranks")


AGREEMENT = Check("agreement", "ranks", "Ranks agree", _among_ranks)
REACH = Check("reach", "ranks", "Reach between ranks", _among_ranks)
_GRAVITY = {"SKIP": 0, "PASS": 1, "WARN": 2, "FAIL": 3}
_WIDE = 16  # ranks up to which cells name rails; beyond, they count them
_MOST = 64  # ranks up to which there is a table


def rails_of(machine: Machine, local: int, named: Sequence[str] = ()) -> list[tuple[str, int]]:
    """(device, port) that a rank uses: every active port of `named`, or of the NICs that its GPU should have.

    Without GPUs every rank takes all. BadArgument for a name that is no device.
    """
    from rdmakit.model.nics import assign_nics
    from rdmakit.verbs.topology import DISTANCES

    known = {nic.name: nic for nic in machine.nics}
    unknown = [name for name in named if name not in known]
    if unknown:
        raise BadArgument("no such RDMA device", value=unknown[0], rule=", ".join(known) or "there is none",
                          remedy="rdmakit info --topology lists them")  # fmt: skip
    if named:
        chosen = [known[name] for name in named]
    else:
        gpus = machine.topology.gpus
        nics = [nic for nic in machine.nics if any(port.state == "ACTIVE" for port in nic.ports)]
        if gpus and nics and max(len(gpus), len(nics)) <= 16 and len(nics) > 1:
            gpu, share = local % len(gpus), max(1, len(nics) // len(gpus))
            costs = [[DISTANCES.index(machine.topology.between(g, nic)) for nic in nics] for g in gpus]
            first = assign_nics(costs)[gpu]
            # Ports of one card are neighbours of like distance: a GPU takes as many as there are for each.
            rest = sorted((i for i in range(len(nics)) if i != first), key=lambda i: (costs[gpu][i], abs(i - first)))
            chosen = [nics[i] for i in sorted([first, *rest[: share - 1]])]
        else:
            chosen = nics
    return [(nic.name, port.number) for nic in chosen for port in nic.ports if port.state == "ACTIVE"]


def merged(of_ranks: Sequence[Sequence[Result]]) -> list[Result]:
    """A result for each check: the gravest answer of all ranks, with the ranks that gave it unless all did.

    `facts` become {"ranks": {verdict: [rank, …]}, rank's number: its facts}.
    """
    found = []
    for each in zip(*of_ranks, strict=True):
        gravity = max(_GRAVITY[result.answer.verdict] for result in each)
        grave = [rank for rank, result in enumerate(each) if _GRAVITY[result.answer.verdict] == gravity]
        answer = each[grave[0]].answer
        where = "" if len(grave) == len(each) else f"rank{'' if len(grave) == 1 else 's'} {_listed(grave)}: "
        verdicts = {v: [r for r, result in enumerate(each) if result.answer.verdict == v] for v in VERDICTS}
        facts: dict[str, Any] = {"ranks": {v: ranks for v, ranks in verdicts.items() if ranks}}
        facts.update({str(rank): result.answer.facts for rank, result in enumerate(each) if result.answer.facts})
        found.append(Result(each[0].check, Answer(answer.verdict, where + answer.said, answer.remedy, facts)))
    return found


def _listed(numbers: Sequence[int]) -> str:
    """
    >>> _listed([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def agreement(told: Sequence[dict[str, Any]], reached: Reach) -> Answer:
    """What should be the same on all ranks: rdmakit, driver, the rails' number, link layer and MTU.

    `told[rank]`: name → value.
    """
    values: dict[str, list[Any]] = {name: [each.get(name) for each in told] for name in told[0]}
    values["rails"] = [len(places) for places in reached.places]
    for name in ("mtu", "link_layer"):
        values[name] = [tuple(sorted({getattr(place, name) for place in places})) for places in reached.places]
    values = {name: each for name, each in values.items() if any(each)}
    differing = {}
    for name, each in values.items():
        counts = Counter(each)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [rank for rank, value in enumerate(each) if value != usual]
            differing[name] = f"{name} {_shown(each[odd[0]])} on rank {_listed(odd)}, {_shown(usual)} elsewhere"
    if differing:
        return warned("; ".join(differing.values()), "install and set up all hosts alike",
                      **{name: [_shown(value) for value in values[name]] for name in differing})  # fmt: skip
    if not values:
        return skipped("nothing to compare: no rail, no driver, rdmakit not installed as a package")
    return passed(", ".join(values) + " alike on all ranks")


def _shown(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value or "none")


def _try_by_hand(here: Place, there: Place) -> str:
    """A command that shows whether packets of full size get through.

    >>> _try_by_hand(Place("mlx5_0/1", "::ffff:10.0.0.1", 4096, "Ethernet"), Place("b/1", "::ffff:10.0.0.2", 4096, ""))
    'ping -M do -s 4096 -I 10.0.0.1 10.0.0.2'
    """
    own, peer = (place.gid.removeprefix("::ffff:") for place in (here, there))
    if here.link_layer != "Ethernet" or own == here.gid:
        device, _, port = here.name.partition("/")
        return f"ibv_rc_pingpong -d {device} -i {port} -m {here.mtu} (-g GID) with its other end at {there.name}"
    return f"ping -M do -s {min(here.mtu, there.mtu)} -I {own} {peer}"


def reachability(reached: Reach, locals_: Sequence[int]) -> Answer:
    """Do all pairs reach each other? FAIL when ranks of one number on their hosts do not, which every kernel joins, or
    when one reaches nobody; WARN when only others do not, as on fabrics whose rails are apart.
    """
    bare = [rank for rank, places in enumerate(reached.places) if not places]
    if len(bare) == len(reached.places):
        why = next((said for said in reached.refusals if said), "")
        if why:
            return failed(f"no rank opens its devices: {why}", "see the check of the loopback")
        return skipped("no rank has an active port")
    if bare:
        why = reached.refusals[bare[0]] or "no active port"
        return failed(f"rank {_listed(bare)} has no rail: {why}", "see these ranks' checks of ports and loopback")
    tried = sum(reached.rails(a, b) for a in range(len(locals_)) for b in range(len(locals_)) if a != b)
    facts = {"tried": tried, "unreached": len(reached.unreached)}
    if not reached.unreached:
        return passed(f"{tried} WRITEs, every rank to every other by each rail: all arrived", **facts)
    size = len(reached.places)
    deaf = [a for a in range(size) if not any(reached.reached(a, b) for b in range(size) if b != a)]
    same = [each for each in reached.unreached if locals_[each.source] == locals_[each.target] or each.source in deaf]
    worst = (same or list(reached.unreached))[0]
    here, there = (reached.places[rank][worst.rail - 1] for rank in (worst.source, worst.target))
    said = (
        f"{len(reached.unreached)} of {tried} WRITEs did not arrive, first rank {worst.source} ({here.name}) → rank "
        f"{worst.target} ({there.name}): {worst.why}"
    )
    remedy = f"on rank {worst.source}'s host: {_try_by_hand(here, there)}"
    return failed(said, remedy, **facts) if same else warned(said, remedy, **facts)


def table(reached: Reach, hosts: Sequence[str]) -> list[str]:
    """Who is who, and for each pair the rails by which a WRITE arrived; a row sends, a column receives."""
    size = len(reached.places)
    lines = []
    for rank, places in enumerate(reached.places):
        rails = ", ".join(f"{number} {place.name}" for number, place in enumerate(places, 1)) or "no rail"
        lines.append(f"  rank {rank:<4d} {hosts[rank]}: {rails}")
    if not any(reached.places):
        return lines
    if size > _MOST:
        return [f"  {counted(size, 'rank')} on {counted(len(set(hosts)), 'host')}: no table of so many"]
    named = size <= _WIDE
    cells = [["-" if a == b else _cell(reached, a, b, named) for b in range(size)] for a in range(size)]
    wide = max(len(str(size - 1)), *(len(cell) for row in cells for cell in row)) + 1
    lines.append(
        f"  from \\ to  {'rails by which a WRITE arrived' if named else 'number of rails that carried a WRITE'}"
    )
    lines.append(" " * 8 + "".join(str(b).rjust(wide) for b in range(size)))
    lines += [f"{a:8d}" + "".join(cell.rjust(wide) for cell in row) for a, row in enumerate(cells)]
    return lines


def _cell(reached: Reach, a: int, b: int, named: bool) -> str:
    rails = reached.reached(a, b)
    if not named:
        return str(len(rails))
    return "+".join(map(str, rails)) or "none"


def examine_all(
    meeting: Any, machine: Machine, results: Sequence[Result], local: int, named: Sequence[str] = ()
) -> tuple[list[Result], dict[str, Any], list[str]]:
    """What all ranks know in the end: results of all, the JSON's `ranks`, the lines of the table. Collective."""
    from rdmakit.cli.doctor.schema import as_json

    own = as_json(machine, results)
    facts = {result.check.name: result.answer.facts for result in results}
    told = {"rdmakit": own["config"]["rdmakit"], "driver": facts.get("driver", {}).get("driver", "")}
    rails: list[tuple[str, int]] = []
    refusal = ""
    try:
        rails = rails_of(machine, local, named)
    except BadArgument as error:
        refusal = f"{error.what}: {error.value} ({error.rule})"
    every = meeting.all_gather((list(results), own["config"]["host"], local, told, refusal))
    refused = next((each[4] for each in every if each[4]), "")
    if refused:  # the same on all ranks, so that none waits for one that has left
        raise BadArgument("a rank cannot use the devices that were named", value=refused, rule="--device NAME",
                          remedy="rdmakit info --topology lists them; leave --device out")  # fmt: skip
    reached = reach(meeting, rails, machine.ask)
    hosts, locals_ = [each[1] for each in every], [each[2] for each in every]
    found = merged([each[0] for each in every])
    found.append(Result(AGREEMENT, agreement([each[3] for each in every], reached)))
    found.append(Result(REACH, reachability(reached, locals_)))
    verdicts = [Counter(result.answer.verdict for result in each[0]) for each in every]
    ranks = {
        "size": len(every),
        "hosts": hosts,
        "figures": [{verdict.lower(): count[verdict] for verdict in VERDICTS} for count in verdicts],
        "reach": reached.to_dict(),
    }
    return found, ranks, table(reached, hosts)
