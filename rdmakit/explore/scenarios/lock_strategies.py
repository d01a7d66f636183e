"""Each strategy of the sequence lock under its own name, in the hardest mode that it declares right; and three of the
mistakes that people make. Leans on scenarios.lock.
"""

from __future__ import annotations

from typing import Any

from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import lock

_LAST_32 = (1 << 32) - 1  # the next ticket's low 32 bits are 0
_RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "amo": ("an atomic behind the data, queue pairs that deliver out of order", {"ordering": "out_of_order"}),
    "amo-narrow": ("an atomic of 4 bytes, tickets that pass 2**32", {"narrow_tail": True, "first_ticket": _LAST_32}),
    "imm": ("an immediate, tickets that pass 2**16", {"ordering": "relaxed", "first_ticket": (1 << 16) - 1}),
    "eager": ("checksums in the lines of the data, which may tear", {"crc": True, "ordering": "relaxed"}),
    "eager-host": ("stamps in the lines of the data, a reader that sees a line in order", {"first_ticket": _LAST_32}),
    "write": ("a flag behind the data, everything in order", {"first_ticket": _LAST_32}),
    "cqe": ("a flag after the data's completion, queue pairs that deliver out of order", {"ordering": "out_of_order"}),
}
_WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "lock-split": ("the signal travels on another queue pair than its data", {"strategy": "split"}),
    "lock-write-relaxed": (
        "a flag behind the data, but WRITEs may pass each other",
        {"strategy": "write", "ordering": "relaxed"},
    ),
    "lock-eager-torn": ("stamps without checksums, but the bytes of a line land in any order", {"strategy": "eager"}),
}


def _register(name: str, title: str, options: dict[str, Any], *, holds: bool, tags: tuple[str, ...]) -> None:
    @scenario(name, title, holds=holds, tags=tags)
    def build(scene: Scene) -> None:
        if name == "lock-eager-host":
            scene.reader = "host"
        scene.options = {**options, **scene.options}
        lock(scene)

    build.__doc__ = f"`lock` with {', '.join(f'{option}={value}' for option, value in options.items())}."


for _name, (_title, _options) in _RIGHT.items():
    _options = {"strategy": _name.partition("-")[0], **_options}
    _register(f"lock-{_name}", _title, _options, holds=True, tags=("quick", "lock"))
for _name, (_title, _options) in _WRONG.items():
    _register(_name, _title, {**_options, "races": False}, holds=False, tags=("wrong", "lock"))
