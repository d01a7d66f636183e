"""`rdmakit.open("mlx5_0")`, `rdmakit.open("rxe0:gid_index=1")`: real devices by their own names.

Leans on provider. Grammar: NAME[:gid_index=N][,queues=mlx5|devx|proxied][,traffic_class=N].
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from rdmakit.device import Context, Refused
from rdmakit.device.context import open_context
from rdmakit.device.lifetime import typed_refusal
from rdmakit.errors import BadArgument, NotAvailable, RdmakitError
from rdmakit.verbs import _verbs
from rdmakit.verbs.devx_memory import QueuePlacement
from rdmakit.verbs.devx_queues import DevxHca
from rdmakit.verbs.mlx5_queues import Mlx5Hca
from rdmakit.verbs.proxied_queues import ProxiedHca

__all__ = ["GRAMMAR", "device_names", "open_device", "open_devx"]

GRAMMAR = (
    "NAME[:key=value,…] with gid_index=N (which GID its queue pairs use; the best RoCE v2 one by default), "
    "traffic_class=N (of packets of queue pairs that name none: 4 × DSCP, up to 255) and queues=mlx5|devx|proxied (the "
    "device's own rings by libmlx5, or made by command, or ours with a proxy that posts; by default mlx5 where the "
    "device has them)"
)


def device_names() -> tuple[list[str], str]:
    """Names that `open_device` takes here; and, when libibverbs cannot say, why not."""
    try:
        with typed_refusal("listing RDMA devices"):
            return [str(device["name"]) for device in _verbs.devices()], ""
    except RdmakitError as error:
        return [], f"{error.what}: {error.rule}"


class _Options(NamedTuple):
    gid_index: int | None = None
    queues: str | None = None
    traffic_class: int = 0


def _options(text: str) -> _Options:
    found = _Options()
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key == "gid_index" and value.isdigit():
            found = found._replace(gid_index=int(value))
        elif key == "traffic_class" and value.isdigit() and int(value) < 1 << 8:
            found = found._replace(traffic_class=int(value))
        elif key == "queues" and value in ("mlx5", "devx", "proxied"):
            found = found._replace(queues=value)
        else:
            raise BadArgument(
                "unknown option of an RDMA device", value=part, rule=GRAMMAR, remedy="write it as the rule shows"
            )
    return found


def open_device(spec: str) -> Context:
    """What `rdmakit.open(spec)` does for names that libibverbs knows."""
    name, _, rest = spec.partition(":")
    asked = _options(rest)
    if asked.queues == "devx":
        return open_devx(spec)
    with typed_refusal("opening the device", device=name):
        context = _verbs.Context(name)
        if asked.queues == "mlx5":
            _require_mlx5(context)
        kind = ProxiedHca if asked.queues == "proxied" or not context.mlx5 else Mlx5Hca
        hca = kind(context, spec, asked.gid_index)
        hca.traffic_class = asked.traffic_class
        return open_context(hca)


def open_devx(spec: str, placement: QueuePlacement | None = None) -> Context:
    """A device whose queues are made by command, in memory that `placement` chooses; host memory by default.

    `spec` is NAME[:gid_index=N][,queues=devx][,traffic_class=N]. NotAvailable, with the reason, where the device takes
    no commands.
    """
    name, _, rest = spec.partition(":")
    asked = _options(rest)
    with typed_refusal("opening the device for commands (DevX)", device=name):
        try:
            context = _verbs.Context(name, devx=True)
        except Refused as refused:
            if refused.code != errno.EINVAL:  # which is how a kernel says that the firmware gives no user contexts
                raise
            raise Refused(errno.EOPNOTSUPP, refused.message, refused.remedy) from None
        hca = DevxHca(context, spec, asked.gid_index, placement=placement)
        hca.traffic_class = asked.traffic_class
        return open_context(hca)


def _require_mlx5(context: _verbs.Context) -> None:
    if not context.mlx5:
        raise NotAvailable(
            f"{context.name} has no mlx5 queues",
            rule="mlx5dv_is_supported says no",
            remedy="leave queues out, or say queues=proxied",
        )
