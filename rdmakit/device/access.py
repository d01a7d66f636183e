"""Access rights by name: "local_write", "remote_read|remote_write", Access.REMOTE_ATOMIC, ["remote_write",
…].

Leans on layout's `Access` (enum ibv_access_flags).
"""

from __future__ import annotations

from collections.abc import Iterable

from rdmakit.errors import BadArgument
from rdmakit.layout import Access

__all__ = ["ALL_ACCESS", "AccessLike", "access_flags", "access_names"]

AccessLike = str | int | Iterable[str]

ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


def access_flags(access: AccessLike) -> Access:
    """The flags that `access` names. "" and 0 are read-only local access. BadArgument for an unknown name.

    >>> access_flags("local_write|remote_write") == Access.LOCAL_WRITE | Access.REMOTE_WRITE
    True
    >>> access_names(access_flags(["remote_read"])), access_names(0)
    ('remote_read', 'local_read')
    """
    if isinstance(access, int):
        return Access(access)
    names = access.replace(",", "|").split("|") if isinstance(access, str) else list(access)
    flags = Access.NONE
    for name in names:
        key = str(name).strip().upper().replace(" ", "_")
        if key in ("", "NONE", "LOCAL_READ"):
            continue
        if key not in Access.__members__:
            known = ", ".join(flag.name.lower() for flag in Access if flag.name)
            raise BadArgument("unknown access right", value=name, rule=f"one of {known}",
                              remedy="spell it as ibv_reg_mr does, several joined by |")
        flags |= Access[key]
    return flags


def access_names(access: int) -> str:
    """Names joined with "|"; "local_read" for none, since every MR may be read locally."""
    return "|".join((flag.name or "").lower() for flag in Access if flag & access) or "local_read"
