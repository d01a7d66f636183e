"""`rdmakit.open("emu:…")`: the string's grammar, and worlds that several opens share.

Leans on world. Grammar: emu[:key=value[,key=value …]].
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from rdmakit.device import Context
from rdmakit.emu.world import World
from rdmakit.errors import BadArgument

__all__ = ["GRAMMAR", "open_device"]


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


def _integer(text: str) -> int:
    return int(text, 0)


# Keys that say which device, and keys that say what world it lies in.
_WHERE: dict[str, Callable[[str], Any]] = {"host": _integer, "nic": _integer, "world": str}
_WORLD: dict[str, Callable[[str], Any]] = {
    "hosts": _integer,
    "gpus_per_host": _integer,
    "nics_per_gpu": float,
    "ports": _integer,
    "lag": str,
    "doorbell": str,
    "policy": str,
    "seed": _integer,
    "roce": _flag,
    "mtu": _integer,
    "port_gbps": float,
}
GRAMMAR = (
    "emu[:key=value,…] with host=N, nic=N, world=NAME (opens of one NAME share a world) and, for the first "
    "open of a world, hosts=N, gpus_per_host=N, nics_per_gpu=X, ports=1|2, lag=none|hash|affinity, "
    "doorbell=dbrec|register|no_dbr, policy=fast|timed|explore, seed=N, roce=0|1, mtu=256…4096, port_gbps=X"
)

_NAMED: weakref.WeakValueDictionary[str, World] = weakref.WeakValueDictionary()


def _parse(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        convert = {**_WHERE, **_WORLD}.get(key)
        if convert is None or not equals:
            raise BadArgument("unknown key of an emulated device", value=part, rule=GRAMMAR,
                              remedy="rdmakit.World(…) takes everything else")
        if key in values:
            raise BadArgument("key given twice", value=key, rule=GRAMMAR, remedy="keep one of the two")
        try:
            values[key] = convert(value.strip())
        except (ValueError, KeyError):
            raise BadArgument(f"bad value of {key}", value=value, rule=GRAMMAR,
                              remedy="write it as the rule shows") from None
    return values


def _shared_world(name: str, asked: dict[str, Any], host: int) -> World:
    world = _NAMED.get(name)
    if world is None:
        asked.setdefault("hosts", max(2, host + 1))  # one who shares a world wants somebody to talk to
        world = _NAMED[name] = World(name=name, **asked)
        return world
    for key, value in asked.items():
        has = world.seed if key == "seed" else getattr(world.topology, key)
        if has != value:
            raise BadArgument(
                f"world {name!r} exists with another {key}",
                value=value,
                rule=f"it has {key}={has}",
                remedy="leave the key out, or use another world=NAME",
            )
    return world


def open_device(text: str) -> Context:
    """What `rdmakit.open("emu:" + text)` does.

    >>> a, b = open_device("world=doctest,host=0"), open_device("world=doctest,host=1")
    >>> a.device.where, b.device.where
    ('host 0', 'host 1')
    """
    values = _parse(text)
    host, nic = values.pop("host", 0), values.pop("nic", 0)
    name = values.pop("world", None)
    if name is not None:
        return _shared_world(name, values, host).open(host, nic)
    values.setdefault("hosts", host + 1)
    return World(**values).open(host, nic)
