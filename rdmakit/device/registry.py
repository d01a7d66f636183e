"""Opening a device by a string: "emu", "emu:doorbell=register,hosts=2", "mlx5_0", "rxe0:gid_index=1".

Leans on context and errors. A backend registers its prefix with the name of the module that has its
`open_device`; the module is imported when the first such device is opened, so importing rdmakit stays cheap
and needs no driver. One backend may know devices by their own names, and is asked last.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rdmakit.device.context import Context
from rdmakit.errors import BadArgument, NotAvailable, UnknownDevice

__all__ = ["backends", "device_strings", "open", "register_backend", "register_named_devices"]

Opener = Callable[[str], Context]

_BACKENDS: dict[str, str | Opener] = {}
_NAMED: list[str] = []  # the module that opens devices by their own names, if there is one


def register_backend(prefix: str, loader: str | Opener) -> None:
    """Devices whose string is `prefix`, or starts with `prefix:`, are opened by `loader(rest)`.

    `loader` is a callable, or "package.module" with a function `open_device(rest) -> Context` in it, which is
    imported when needed. `rest` is what follows the colon, "" without one.

    >>> register_backend("nowhere", "rdmakit.no_such_backend")
    >>> open("nowhere")
    Traceback (most recent call last):
    rdmakit.errors.NotAvailable: backend 'nowhere' cannot be loaded...
    >>> del _BACKENDS["nowhere"]
    """
    if not prefix or ":" in prefix:
        raise BadArgument("bad backend prefix", value=prefix, rule="a word without a colon",
                          remedy="register the name that stands before the colon of a device string")
    _BACKENDS[prefix] = loader


def register_named_devices(module: str) -> None:
    """Names that are no prefix go to `module`, which is imported then.

    It has `device_names() -> (names, why there are none)` and `open_device(spec) -> Context`.
    """
    _NAMED[:] = [module]


def backends() -> list[str]:
    """The prefixes that `open` knows, in alphabetical order."""
    return sorted(_BACKENDS)


def device_strings(text: str) -> list[str]:
    """The device strings of a list with commas; options of one device are separated by commas, too.

    >>> device_strings("mlx5_0:queues=devx,gid_index=3,mlx5_1, emu:world=a,host=1")
    ['mlx5_0:queues=devx,gid_index=3', 'mlx5_1', 'emu:world=a,host=1']
    """
    found: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        option = "=" in part and ":" not in part.partition("=")[0]
        if option and found and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _opener(prefix: str) -> Opener:
    loader = _BACKENDS[prefix]
    if not isinstance(loader, str):
        return loader
    try:
        module = import_module(loader)
    except ImportError as error:
        raise NotAvailable(
            f"backend {prefix!r} cannot be loaded",
            rule=str(error),
            remedy="build or install the package again: python -m pip install rdmakit",
        ) from error
    found: Opener = module.open_device
    return found


def open(spec: str) -> Context:  # the name that users see is rdmakit.open
    """Open a device by its string. UnknownDevice, listing what there is, for one that no backend knows.

    >>> with open("emu") as context:
    ...     context.device.name
    'mlx5_0'
    """
    if not isinstance(spec, str):
        raise BadArgument("a device is named by a string", value=spec, rule="prefix[:key=value,…]",
                          remedy="for example rdmakit.open('emu')")
    prefix, _, rest = spec.partition(":")
    if prefix in _BACKENDS:
        return _opener(prefix)(rest)
    return _open_named(spec, prefix)


def _open_named(spec: str, name: str) -> Context:
    known, why = [f"{prefix}[:…]" for prefix in backends()], ""
    if _NAMED:
        try:
            module = import_module(_NAMED[0])
            devices, why = module.device_names()
        except ImportError as error:  # not built here
            devices, why = [], str(error)
        if name in devices:
            found: Context = module.open_device(spec)
            return found
        known += devices
    raise UnknownDevice(
        "no such device",
        value=repr(spec),
        rule="known: " + ", ".join(known) + (f" ({why})" if why else ""),
        remedy='rdmakit.open("emu") opens an emulated ConnectX on any machine',
    )
