"""Notebook 13: two lines of foreign device code, found by what happens without them and with them exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair
from rdmakit.errors import CompileError, RdmakitError
from rdmakit.explore import Explorer, Failure, Scene
from rdmakit.explore.explorer import Verdict

_NICS = ("dbrec", "register", "no_dbr")
_BLOCKS, _EACH, _SEEDS, _HELD = 2, 2, 10, 100
_KERNEL = "RDMAKIT_KERNEL post("


def _scene(scene: Scene) -> None:
    """Four WRITEs by two blocks, posted by one variant of the code."""
    world = scene.world(hosts=2, ports=1, doorbell=str(scene.options["nic"]))
    near, far = connected_pair(world.open(0), world.open(1))
    words = _BLOCKS * _EACH
    source, target = (world.array(words, np.uint64, name=name) for name in ("source", "target"))
    source[:] = np.random.default_rng(13).integers(1, 1 << 40, words)
    here, there = near.pd.register(source), far.pd.register(target)
    code = world.compile(str(scene.options["code"]), name="theirs.cu")
    post = code.get_function(str(scene.options["kernel"]))
    post(_BLOCKS, 32, [near.device_handle(), there.remote(), here, _EACH])
    scene.keep(near, far, here, there)
    scene.expect(target, source)
    scene.allow_latent_races()


def _variants(code: str, record: int, bell: int) -> str:
    """The code as it is, exchanged, and without either line, each in a namespace of its own: one compilation."""
    lines = code.splitlines()
    swapped = list(lines)
    swapped[record], swapped[bell] = lines[bell], lines[record]
    without = {
        f"no_{name}": [*lines[:number], "", *lines[number + 1 :]]
        for name, number in (("record", record), ("bell", bell))
    }
    parts = []
    for name, body in {"whole": lines, "swapped": swapped, **without}.items():
        text = "\n".join("" if line.startswith("#include") else line for line in body)
        parts.append(f"namespace {name} {{\n{text.replace(_KERNEL, f'RDMAKIT_KERNEL {name}(')}\n}}")
    return "\n".join(["#include <rdmakit/signal.cuh>", *parts])


class _Bench:
    """What becomes of a variant on a NIC."""

    def __init__(self, code: str) -> None:
        self.code = code

    def failures(self, kernel: str, nic: str, seeds: range) -> list[Failure]:
        explorer = Explorer(_scene, code=self.code, kernel=kernel, nic=nic)
        found = (explorer.one(seed=seed) for seed in seeds)
        return [failure for failure in found if failure is not None]

    def never(self, kernel: str, nic: str) -> bool:
        """With every seed somebody waits for ever."""
        failed = self.failures(kernel, nic, range(_SEEDS))
        return sum(failure.verdict is Verdict.HUNG for failure in failed) == _SEEDS

    def holds(self, kernel: str, nic: str, seeds: int = _HELD) -> bool:
        return not self.failures(kernel, nic, range(seeds))


def _number(trial: Trial, value: Any, name: str) -> int:
    trial.is_a(value, int, name)
    return int(value)


def _lines(trial: Trial, bench: _Bench, record: int, bell: int) -> None:
    """Both lines are what they are said to be, by what happens without each, and then with the two exchanged."""
    trial.require(bench.holds("whole", "dbrec"), "the code fails as it is; put THEIRS back as the notebook has it")
    for nic in ("register", "no_dbr"):
        trial.require(
            bench.holds("no_record", nic, _SEEDS),
            f"without line {record} it fails even on a NIC that needs no record ({nic}): it does something else",
        )
    trial.require(
        bench.never("no_record", "dbrec"),
        f"without line {record} a NIC that believes the record alone still hears of WQEs: that line does not write it",
    )
    for nic in _NICS:
        trial.require(
            bench.never("no_bell", nic),
            f"without line {bell} a NIC ({nic}) still executes WQEs: that line does not wake it",
        )
    for nic in ("register", "no_dbr"):
        trial.require(
            bench.holds("swapped", nic),
            f"exchanged, it fails even on a NIC that needs no record ({nic}): one line is not of the two asked for",
        )


@exercise(
    "13.dbr_first",
    hints=(
        "Two stores concern the NIC: one of them is to memory, the other to a register. Which are stores to neither?",
        "A record is 32 bits, big-endian. A send queue's has 16 of them that count, and says how far it is filled.",
        "A NIC which needs no record never misses one. Look for the seed where the late record is all that there is.",
    ),
    seconds=15.0,
)
def dbr_first(trial: Trial, code: object, record: object, bell: object, nic: object, seed: object) -> None:
    """Lines `record` and `bell` of the code are that; exchanged, they make it fail with `seed` on `nic`."""
    trial.is_a(code, str, "the code")
    assert isinstance(code, str)
    trial.require(_KERNEL in code, "pass THEIRS, the code that is listed, first")
    last = len(code.splitlines()) - 1
    one, other = (_number(trial, value, name) for name, value in (("record", record), ("bell", bell)))
    for name, line in (("record", one), ("bell", other)):
        trial.require(1 <= line <= last, f"{name} is a line's number, 1 to {last}; got {line}")
    trial.require(one != other, f"record and bell are two lines; both are {one}")
    trial.is_a(nic, str, "nic")
    trial.require(nic in _NICS, f"nic is one of {', '.join(_NICS)}; got {nic!r}")
    assert isinstance(nic, str)
    number = _number(trial, seed, "seed")
    trial.require(0 <= number < 2**63, f"seed is a number from 0 on; got {number}")
    bench = _Bench(_variants(code, one, other))
    try:
        _lines(trial, bench, one, other)
        failed = bench.failures("swapped", nic, range(number, number + 1))
        whole = bench.holds("whole", nic)
    except CompileError:
        # The compiler speaks of a file that the learner does not see.
        raise Wrong(
            f"with lines {one} and {other} exchanged, or without one of them, it does not compile: "
            "are both whole statements, and of one function?",
            "exception",
        ) from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
    trial.require(whole, f"the code fails as it is on {nic}; put THEIRS back as the notebook has it")
    trial.require(
        failed and failed[0].verdict is Verdict.HUNG,
        f"the lines are right. But with seed {number}, on a NIC that believes {nic}, the exchanged code "
        + (f"fails otherwise: {failed[0].what.splitlines()[0]}" if failed else "delivers everything"),
    )
