"""Opening and closing: children hold their parents, a parent in use cannot be closed, a closed object refuses
use.

Leans on errors and provider. Each public object owns a `Box`, which knows how to give the thing back to the
device and which boxes it stands on. Boxes count their users by hand: the garbage collector finalises a cycle
in any order, and a PD must still go after its QPs then.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rdmakit.device.provider import Refused
from rdmakit.errors import BadArgument, BadState, DeviceFault, NotAvailable, ObjectBusy, OutOfMemory, RdmakitError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Box", "Resource", "error_of", "typed_refusal"]

_serials = itertools.count()

_BY_ERRNO: dict[int, type[RdmakitError]] = {
    errno.EBUSY: ObjectBusy,
    errno.ENOMEM: OutOfMemory,
    errno.EOPNOTSUPP: NotAvailable,
    errno.EPROTONOSUPPORT: NotAvailable,
    errno.ENOSYS: NotAvailable,
    errno.EACCES: NotAvailable,
    errno.EPERM: NotAvailable,
    errno.ENODEV: DeviceFault,
    errno.EIO: DeviceFault,
}


def error_of(code: int) -> type[RdmakitError]:
    """The kind of error that a refusal with this errno becomes.

    >>> error_of(errno.EOPNOTSUPP).__name__, error_of(errno.EINVAL).__name__
    ('NotAvailable', 'BadArgument')
    """
    return _BY_ERRNO.get(code, BadArgument)


class typed_refusal:
    """Turn a `Refused` into the error of its errno: what was asked, the device's reason as the rule.

    >>> with typed_refusal("dealloc_pd", pd=3):
    ...     raise Refused(errno.EBUSY, "PD 3 holds 2 objects")
    Traceback (most recent call last):
    rdmakit.errors.ObjectBusy: dealloc_pd was refused with EBUSY (pd 3)
    rule: PD 3 holds 2 objects
    """
    __slots__ = ("_facts", "_remedy", "_what")

    def __init__(self, what: str, remedy: str | None = None, **facts: Any) -> None:
        self._what, self._remedy, self._facts = what, remedy, facts

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, refused: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(refused, Refused):
            return
        # Python knows 95 as ENOTSUP; man pages and kernels say EOPNOTSUPP.
        known = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}
        name = known.get(refused.code, str(refused.code))
        typed = error_of(refused.code)
        raise typed(f"{self._what} was refused with {name}", rule=refused.message or None,
                    remedy=refused.remedy or self._remedy, **{**self._facts, **refused.facts}) from None


class Box:
    """What gives a device object back, once it has been dropped and nothing stands on it any more."""

    __slots__ = ("_dropped", "_parents", "_release", "users")

    def __init__(self, release: Callable[[], None], parents: tuple[Box, ...] = ()) -> None:
        self._release: Callable[[], None] | None = release
        self._parents = parents
        self._dropped = False
        self.users = 0
        for parent in parents:
            parent.users += 1

    def drop(self) -> None:
        """Give back now, or when the last user goes. Idempotent."""
        self._dropped = True
        self._settle()

    def _settle(self) -> None:
        if not self._dropped or self.users or self._release is None:
            return
        release, self._release = self._release, None
        try:
            release()
        finally:
            parents, self._parents = self._parents, ()
            for parent in parents:
                parent.users -= 1
                parent._settle()


class Resource:
    """Base of Context, PD, MR, CQ and QP.

    `close()` gives the object back and is idempotent; it raises ObjectBusy while others stand on it. Leaving
    a `with` block first closes what was made *from* the object, youngest first, so blocks need not be nested.
    """

    _kind = "object"

    def __init__(self, release: Callable[[], None], maker: Resource | None, *others: Resource) -> None:
        parents: tuple[Resource, ...] = tuple(
            dict.fromkeys(parent for parent in (maker, *others) if parent is not None)
        )
        self._parents = parents
        self._maker = maker
        self._serial = next(_serials)
        self._children: dict[int, weakref.ref[Resource]] = {}
        self._box: Box = Box(release, tuple(parent._box for parent in parents))
        self._closed = False
        for parent in parents:
            parent._children[self._serial] = weakref.ref(self)

    @property
    def closed(self) -> bool:
        """Whether it has been closed; a closed object only shows itself."""
        return self._closed

    def _name(self) -> str:
        return self._kind

    def _require_open(self) -> None:
        if self._closed:
            raise BadState(
                f"{self._name()} is closed",
                rule="a closed object refuses use",
                remedy=f"make a new {self._kind}, or leave its with block later",
            )

    def _users(self) -> list[Resource]:
        found = [child() for _, child in sorted(self._children.items(), reverse=True)]
        return [child for child in found if child is not None and not child._closed]

    def close(self) -> None:
        """Give the object back to the device. ObjectBusy, naming the users, while others stand on it."""
        if self._closed:
            return
        if self._box.users:
            gc.collect()  # a traceback may hold the last name of a child
        if self._box.users:
            users = self._users()
            named = ", ".join(user._name() for user in users[:4]) or "objects of the device"
            more = f" and {len(users) - 4} more" if len(users) > 4 else ""
            raise ObjectBusy(
                f"{self._name()} is in use",
                value=self._box.users,
                rule=f"used by {named}{more}",
                remedy="close those first, or let a with block of the context close everything in order",
            )
        self._drop()

    def _drop(self) -> None:
        if self._closed:
            return
        self._closed = True
        for parent in self._parents:
            parent._children.pop(self._serial, None)
        self._box.drop()

    def _made(self) -> list[Resource]:
        """All that was made from this object, and from that."""
        children = [child for child in self._users() if child._maker is self]
        return [*children, *(grandchild for child in children for grandchild in child._made())]

    def _close_made(self) -> None:
        """Close what was made from this object, youngest first: what an object stands on is older than it."""
        for child in sorted(self._made(), key=lambda made: made._serial, reverse=True):
            child.close()

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_made()
            self.close()
        except RdmakitError:
            if error is None:  # else that one says more
                raise

    def __del__(self) -> None:
        # Half-made objects and interpreter exit come here too; there is nobody to tell.
        with contextlib.suppress(Exception):
            self._drop()
