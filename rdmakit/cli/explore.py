"""`rdmakit explore SCENARIO`: does a protocol hold in every order that hardware, fabric and memory allow?

Leans on explore. Exit status 0 only if every schedule that was run held.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
from typing import Any

from rdmakit.cli.progress import Progress
from rdmakit.errors import BadArgument

__all__ = ["add_parser", "add_scenario_arguments", "explorer_options", "main", "make_explorer"]

_DEFAULT = 2000


def add_scenario_arguments(parser: argparse.ArgumentParser) -> None:
    """What `explore` and `replay` share: the scenario and how it is set up."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a name of --list, or file.py:function")
    parser.add_argument("--faults", metavar="PLAN", help='what may go wrong, e.g. "loss=0.1,ack_lost=0.1,budget=6"')
    parser.add_argument("--reader", choices=("gpu", "host"), help="who reads what a NIC has written (default gpu)")
    parser.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", action="append", default=[], help="an option of the scenario"
    )


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit explore`."""
    p = subparsers.add_parser("explore", help="many schedules of one protocol: held, or one seed that fails")
    add_scenario_arguments(p)
    p.add_argument("--schedules", type=int, metavar="N", help=f"how many (default {_DEFAULT})")
    p.add_argument("--seconds", type=float, metavar="S", help="as many as fit in so many seconds")
    p.add_argument("--seed", type=int, default=1, metavar="S", help="of the first; the next has S + 1 (default 1)")
    p.add_argument("--exhaustive", action="store_true", help="all schedules, by depth, instead of chosen ones")
    p.add_argument("--stale", type=int, default=0, metavar="N", help="with --exhaustive: at most N stale loads")
    p.add_argument("--switches", type=int, default=0, metavar="N", help="with --exhaustive: at most N preemptions")
    p.add_argument("--save", metavar="FILE", help="write the failing schedule there, made small, for `rdmakit replay`")
    p.add_argument("--list", action="store_true", help="the scenarios there are")
    p.add_argument("--mutants", action="store_true", help="weaken the device code place by place; who notices?")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise BadArgument("no setting", value=text, rule="KEY=VALUE", remedy="for example --set transfers=3")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def explorer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `Explorer` that a command line gives."""
    found = dict(_setting(text) for text in args.settings)
    if clash := set(found) & {"faults", "reader"}:
        raise BadArgument(
            "an option by two names", value=", ".join(sorted(clash)), rule="--faults, --reader",
            remedy="give it as --faults or --reader, not by --set",
        )  # fmt: skip
    given = {name: getattr(args, name) for name in ("faults", "reader") if getattr(args, name) is not None}
    return {**found, **given}


def make_explorer(scenario: str | None, options: dict[str, Any]) -> Any:
    """The scenario, set up. BadArgument when there is none, or when its function does not get that far."""
    from rdmakit.errors import RdmakitError
    from rdmakit.explore import Explorer

    if scenario is None:
        raise BadArgument(
            "no scenario given", rule="a name, or file.py:function", remedy="rdmakit explore --list",
            options=", ".join(options) or "none",
        )  # fmt: skip
    try:
        return Explorer(scenario, **options)
    except RdmakitError:
        raise
    except Exception as error:  # whatever a user's file raises
        trace, where = error.__traceback__, ""
        while trace is not None:
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next
        raise BadArgument(
            f"the scenario cannot be set up: {type(error).__name__}: {error}", value=scenario, at=where,
            rule="a function of one Scene that makes a world and launches", remedy="mend it there",
        ) from error  # fmt: skip


def _config(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name not in ("func", "command", "json")}


def _show_list(args: argparse.Namespace) -> int:
    from rdmakit.explore import known_scenarios

    known = known_scenarios()
    if args.json:
        keys = ("name", "title", "faults", "holds", "tags")
        named = [{key: getattr(s, key) for key in keys} for s in known]
        figures = {"scenarios": len(known)}
        print(json.dumps({"ok": True, "figures": figures, "config": _config(args), "scenarios": named}))
        return 0
    width = max(len(s.name) for s in known)
    for s in known:
        wrong = "" if s.holds else " (wrong on purpose)"
        print(f"{s.name:<{width}}  {s.title}{wrong}" + (f"; under {s.faults}" if s.faults else ""))
    return 0


def _mutants(args: argparse.Namespace) -> int:
    from rdmakit.explore.mutants import run_all_mutants, run_mutants

    with Progress("mutants", quiet=args.json) as progress:

        def step(done: int, total: int) -> None:
            progress.total = total
            progress.step()

        budget = args.schedules or 4000
        if args.scenario:
            run = run_mutants([make_explorer(args.scenario, explorer_options(args))], budget=budget, progress=step)
        else:
            run = run_all_mutants(budget=budget, progress=step)
    if args.json:
        print(json.dumps({"ok": run.ok, "figures": run.figures(), "config": _config(args)}))
    else:
        print(run)
    return 0 if run.ok else 1


def _check_numbers(args: argparse.Namespace) -> None:
    for name, least in (("schedules", 1), ("seconds", 0), ("seed", 0), ("stale", 0), ("switches", 0)):
        value = getattr(args, name)
        if value is not None and not value >= least:
            remedy = f"give --{name} {least} or more, or leave it out"
            raise BadArgument(f"--{name} makes no search", value=value, rule=f"at least {least}", remedy=remedy)
    if not args.exhaustive and (args.stale or args.switches):
        raise BadArgument(
            "a bound without a search that it bounds", rule="--stale and --switches go with --exhaustive",
            remedy="add --exhaustive, or leave the bound out", stale=args.stale, switches=args.switches,
        )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand: prints, returns the exit status."""
    if args.list:
        return _show_list(args)
    _check_numbers(args)
    if args.mutants:
        return _mutants(args)
    explorer = make_explorer(args.scenario, explorer_options(args))
    unbounded = args.seconds is not None or args.exhaustive
    schedules = args.schedules or (1 << 40 if unbounded else _DEFAULT)
    with Progress(f"explore {explorer.scenario}", args.schedules, quiet=args.json) as progress:

        def step(done: int) -> None:
            progress.step("schedules", done - progress.done)

        if args.exhaustive:
            bounds = {"stale": args.stale, "switches": args.switches}
            found = explorer.exhaust(**bounds, limit=schedules, seconds=args.seconds, progress=step)
        else:
            found = explorer.run(schedules, seed=args.seed, seconds=args.seconds, progress=step)
    saved = _save(args, explorer, found.failure)
    if args.json:
        config = _config(args) | {"options": explorer.options, "bounds": found.bounds}
        print(json.dumps({"ok": found.ok, "figures": found.figures(), "config": config}))
    else:
        print(found)
        if found.failure is not None:
            print(f"the story: rdmakit replay {saved or _again(args, found.failure.seed)}")
    return 0 if found.ok else 1


def _save(args: argparse.Namespace, explorer: Any, failure: Any) -> str:
    from rdmakit.explore.schedule_file import save_schedule

    if failure is None or args.save is None:
        return ""
    small = explorer.shrink(failure)
    save_schedule(args.save, explorer, small, scenario=args.scenario)
    return f"--schedule {args.save}"


def _again(args: argparse.Namespace, seed: int) -> str:
    """What to give to `rdmakit replay` for the schedule that has failed."""
    if seed < 0:
        return "--schedule FILE (explore once more with --save FILE: no seed makes this schedule)"
    words = [args.scenario, *(word for text in args.settings for word in ("--set", text))]
    for name in ("faults", "reader"):
        words += [f"--{name}", getattr(args, name)] if getattr(args, name) is not None else []
    return shlex.join([*words, "--seed", str(seed)])
