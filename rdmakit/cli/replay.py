"""`rdmakit replay SCENARIO --seed S`: one schedule of a protocol, told step by step.

Leans on explore. A seed's schedule that fails is made small first. A saved one is told as it was saved: a smaller one
may fail in another way than its file says. Exit status 0 only if the schedule held.
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import Any

from rdmakit.cli.explore import add_scenario_arguments, explorer_options, make_explorer
from rdmakit.errors import BadArgument

__all__ = ["add_parser", "main"]

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>:root{{color-scheme:light dark}}
body{{font-family:system-ui,sans-serif;max-width:940px;margin:1em auto;padding:0 1em}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere}}</style>
{picture}<h2>Every step</h2><pre>{text}</pre>
"""


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit replay`."""
    p = subparsers.add_parser("replay", help="the story of one schedule")
    add_scenario_arguments(p)
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, metavar="S", help="the schedule of this seed")
    which.add_argument("--schedule", metavar="FILE", help="the schedule that `rdmakit explore --save FILE` wrote")
    p.add_argument("--no-shrink", action="store_true", help="tell a seed's failing schedule as it is, not made small")
    p.add_argument("--html", metavar="FILE", help="draw it there, too, as a message-sequence chart")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand: prints, returns the exit status."""
    from rdmakit.explore import load_schedule

    options: dict[str, Any] = explorer_options(args)
    scenario, seed = args.scenario, args.seed
    decisions: tuple[int, ...] = ()
    if args.schedule is not None:
        saved = load_schedule(args.schedule)
        scenario, options = scenario or saved.scenario, {**saved.options, **options}
        decisions = saved.decisions
    elif seed < 0:
        remedy = "give the seed that rdmakit explore printed, or --schedule FILE"
        raise BadArgument("--seed makes no schedule", value=seed, rule="at least 0", remedy=remedy)
    explorer = make_explorer(scenario, options)
    failure = explorer.one(seed=seed, decisions=decisions)
    title = f"{explorer.scenario}, {args.schedule if seed is None else f'seed {seed}'}"
    if failure is None:
        story = explorer.story(seed=seed, decisions=decisions, title=title)
    else:
        if args.schedule is None and not args.no_shrink:
            failure = explorer.shrink(failure)
            title += ", made small"
        story = explorer.story(decisions=failure.decisions, title=title)
    if args.html is not None:
        _draw(args.html, story)
    if args.json:
        print(json.dumps(_result(args, story, failure)))
    else:
        print(story)
    return 1 if story.failed else 0


def _draw(path: str, story: Any) -> None:
    page = _PAGE.format(title=html.escape(story.title), picture=story._repr_html_(), text=html.escape(str(story)))
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        remedy = "give --html a file in a directory that you may write to"
        raise BadArgument("cannot write the picture", value=path, rule=error.strerror, remedy=remedy) from None


def _result(args: argparse.Namespace, story: Any, failure: Any) -> dict[str, Any]:
    lines = [{"step": line.number, "who": line.who, "what": line.what, "bad": line.bad} for line in story.lines]
    return {
        "ok": not story.failed,
        "figures": {
            "lines": len(lines),
            "hidden_steps": story.hidden,
            "stale_reads": len(story.stale),
            "decisions": 0 if failure is None else len(failure.decisions),
            "decisions_not_calm": 0 if failure is None else failure.size,
        },
        "config": {name: value for name, value in vars(args).items() if name not in ("func", "command", "json")},
        "story": {"title": story.title, "verdict": story.verdict, "lines": lines, "why": story.why},
    }
