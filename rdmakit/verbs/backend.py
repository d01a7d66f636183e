"""`rdmakit.open("mlx5_0")`, `rdmakit.open("rxe0:gid_index=1")`: real devices by their own names.

Leans on provider. Grammar: NAME[:gid_index=N][,queues=mlx5|devx|proxied].
"""

from __future__ import annotations

import errno

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
    "NAME[:key=value,…] with gid_index=N (which GID its queue pairs use; the best RoCE v2 one by default) and "
    "queues=mlx5|devx|proxied (the device's own rings by libmlx5, or made by command, or ours with a proxy that posts; "
    "by default mlx5 where the device has them)"
)


def device_names() -> tuple[list[str], str]:
    """Names that `open_device` takes here; and, when libibverbs cannot say, why not."""
    try:
        with typed_refusal("listing RDMA devices"):
            return [str(device["name"]) for device in _verbs.devices()], ""
    except RdmakitError as error:
        return [], f"{error.what}: {error.rule}"


def _options(text: str) -> tuple[int | None, str | None]:
    gid_index, queues = None, None
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key == "gid_index" and value.isdigit():
            gid_index = int(value)
        elif key == "queues" and value in ("mlx5", "devx", "proxied"):
            queues = value
        else:
            raise BadArgument(
                "unknown option of an RDMA device", value=part, rule=GRAMMAR, remedy="write it as the rule shows"
            )
    return gid_index, queues


def open_device(spec: str) -> Context:
    """What `rdmakit.open(spec)` does for names that libibverbs knows."""
    name, _, rest = spec.partition(":")
    gid_index, queues = _options(rest)
    if queues == "devx":
        return open_devx(spec)
    with typed_refusal("opening the device", device=name):
        context = _verbs.Context(name)
        if queues == "mlx5":
            _require_mlx5(context)
        kind = ProxiedHca if queues == "proxied" or not context.mlx5 else Mlx5Hca
        return open_context(kind(context, spec, gid_index))


def open_devx(spec: str, placement: QueuePlacement | None = None) -> Context:
    """A device whose queues are made by command, in memory that `placement` chooses; host memory by default.

    `spec` is NAME[:gid_index=N][,queues=devx]. NotAvailable, with the reason, where the device takes no commands.
    """
    name, _, rest = spec.partition(":")
    gid_index, _ = _options(rest)
    with typed_refusal("opening the device for commands (DevX)", device=name):
        try:
            context = _verbs.Context(name, devx=True)
        except Refused as refused:
            if refused.code != errno.EINVAL:  # which is how a kernel says that the firmware gives no user contexts
                raise
            raise Refused(errno.EOPNOTSUPP, refused.message, refused.remedy) from None
        return open_context(DevxHca(context, spec, gid_index, placement=placement))


def _require_mlx5(context: _verbs.Context) -> None:
    if not context.mlx5:
        raise NotAvailable(
            f"{context.name} has no mlx5 queues",
            rule="mlx5dv_is_supported says no",
            remedy="leave queues out, or say queues=proxied",
        )
