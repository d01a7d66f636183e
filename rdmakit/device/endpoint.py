"""What two queue pairs tell each other before they connect: a few numbers that travel as JSON.

Leans on errors.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from rdmakit.errors import BadArgument

__all__ = ["Endpoint", "gid_bytes", "gid_text"]


@lru_cache(maxsize=1024)  # a mesh asks for the same few again and again
def _packed(gid: str) -> bytes:
    return ipaddress.IPv6Address(gid).packed


def gid_bytes(gid: str) -> bytes:
    """The 16 bytes of a GID in IPv6 notation. BadArgument when it is none.

    >>> gid_bytes("::ffff:10.0.0.1").hex()
    '00000000000000000000ffff0a000001'
    """
    try:
        return _packed(gid)
    except (ValueError, TypeError) as error:
        raise BadArgument("not a GID", value=gid, rule=f"IPv6 notation, 16 bytes ({error})",
                          remedy="take it from the peer: qp.endpoint().gid, or context.port(1).gid") from None


def gid_text(raw: bytes) -> str:
    """IPv6 notation; an IPv4-mapped GID (RoCE v2) keeps its dots.

    >>> gid_text(gid_bytes("::ffff:10.0.0.1"))
    '::ffff:10.0.0.1'
    """
    address = ipaddress.IPv6Address(raw)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


@dataclass(frozen=True)
class Endpoint:
    """Address of a queue pair: `qpn` and `psn` (24 bits), `gid` (IPv6 notation), `lid` (0 on RoCE), `mtu` in
    bytes.

    >>> Endpoint.from_json(Endpoint(qpn=0x41, gid="::ffff:10.0.0.1").to_json())
    Endpoint(qpn=65, gid='::ffff:10.0.0.1', lid=0, port=1, psn=0, mtu=4096)
    """

    qpn: int
    gid: str
    lid: int = 0
    port: int = 1
    psn: int = 0
    mtu: int = 4096

    def __post_init__(self) -> None:
        for name, bits in (("qpn", 24), ("psn", 24), ("lid", 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 1 << bits:
                raise BadArgument(f"{name} does not fit", value=value, rule=f"an integer of {bits} bits",
                                  remedy="take it from the peer: qp.endpoint()")
        gid_bytes(self.gid)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Endpoint:
        """The inverse of `to_json`. BadArgument when the text is no endpoint."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise BadArgument("not an endpoint", value=text, rule=f"JSON of Endpoint ({error})",
                              remedy="send the text of qp.endpoint().to_json() as it is") from None

    @classmethod
    def of(cls, remote: Any) -> Endpoint:
        """An endpoint from an Endpoint, its JSON, its dict, or a QP."""
        if isinstance(remote, Endpoint):
            return remote
        if isinstance(remote, str):
            return cls.from_json(remote)
        if isinstance(remote, dict):
            return cls.from_json(json.dumps(remote))
        if hasattr(remote, "endpoint"):
            found = remote.endpoint()
            if isinstance(found, Endpoint):
                return found
        raise BadArgument("not an endpoint", value=type(remote).__name__, rule="an Endpoint, its JSON or dict, or a QP",
                          remedy="pass the peer's qp, or the text that its qp.endpoint().to_json() gave")
