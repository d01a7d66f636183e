"""What ranks tell each other before they make queue pairs, and what has to fit.

Leans on paths, route and errors. Each rank looks at its own pairs; the errors name both ends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import Any

from rdmakit.connect.paths import Path
from rdmakit.connect.route import Steer
from rdmakit.errors import BadState, PeerMismatch

__all__ = ["check_terms", "terms_of"]

Terms = dict[str, Any]


def terms_of(paths: Sequence[Path], qps: int, peers: Collection[int], mtu: int | None) -> Terms:
    """A rank's own: queue pairs, peers, MTU as asked, and each way out."""
    return {"qps": qps, "peers": sorted(peers), "mtu": mtu, "paths": [_path(path) for path in paths]}


def _path(path: Path) -> Terms:
    info = path.context.ib_port(path.ib_port)
    found = {"name": str(path), "gid": info.gid, "lid": info.lid, "mtu": info.mtu, "link": info.link_layer}
    return {**found, "up": path.context.port(path.physical if len(path.context.ports) > 1 else path.ib_port).up}


def check_terms(rank: int, terms: Sequence[Terms], steer: Steer) -> None:
    """PeerMismatch for what does not fit between this rank and its peers; BadState for a port that is down."""
    own = terms[rank]
    for peer in own["peers"]:
        other = terms[peer]
        if rank not in other["peers"]:
            raise _mismatch(rank, peer, "joins", f"rank {peer}", f"not rank {rank}", "give both the same pairs")
        for what, said in {"queue pairs a peer": "qps", "MTU": "mtu"}.items():
            if own[said] != other[said]:
                raise _mismatch(rank, peer, what, own[said], other[said], "pass the same to all ranks")
        if len(own["paths"]) != len(other["paths"]):
            names = [[path["name"] for path in end["paths"]] for end in (own, other)]
            here, there = (", ".join(each) for each in names)
            raise _mismatch(rank, peer, "number of ports", here, there, "as many at each rank")
        for index in range(own["qps"]):
            _check_pair(rank, peer, _at(own, rank, steer(rank, peer, index).port),
                        _at(other, peer, steer(peer, rank, index).port), own["mtu"])  # fmt: skip


def _at(terms: Terms, rank: int, port: int) -> Terms:
    if not 1 <= port <= len(terms["paths"]):
        raise PeerMismatch("the plan names a port that is not there", value=port,
                           rule=f"rank {rank} has {len(terms['paths'])} ports",
                           remedy="plan for the ports that all ranks have")  # fmt: skip
    found: Terms = terms["paths"][port - 1]
    return found


def _check_pair(rank: int, peer: int, own: Terms, other: Terms, mtu: int | None) -> None:
    for whose, path in ((rank, own), (peer, other)):
        if not path["up"]:
            raise BadState("a port is down", value=path["name"], rule="connected ports are up", rank=whose,
                           remedy="plug it in, or leave that device out")  # fmt: skip
        if path["link"] == "Ethernet" and not any(ipaddress.IPv6Address(path["gid"]).packed):
            raise BadState("a port has no RoCE v2 GID", value=path["name"], rule="an IP address on its network device",
                           remedy="ip addr add …, then `rdmakit info`", rank=whose)  # fmt: skip
    ends = f"{own['name']} ↔ {other['name']}"
    if own["link"] != other["link"]:
        raise _mismatch(rank, peer, f"link layer of {ends}", own["link"], other["link"], "join like with like")
    if own["link"] == "Ethernet":
        here, there = (_family(path["gid"]) for path in (own, other))
        if here != there:
            raise _mismatch(rank, peer, f"GIDs of {ends}", f"{own['gid']}, {here}", f"{other['gid']}, {there}",
                            "choose entries of one kind: NAME:gid_index=N, `rdmakit info` lists them")  # fmt: skip
    if mtu is not None and mtu > min(own["mtu"], other["mtu"]):
        raise _mismatch(rank, peer, f"active MTU of {ends}", own["mtu"], other["mtu"],
                        f"an MTU of at most {min(own['mtu'], other['mtu'])}, not {mtu}; or larger frames at both "
                        "network devices")  # fmt: skip


def _family(gid: str) -> str:
    address = ipaddress.IPv6Address(gid)
    if address.ipv4_mapped is not None:
        return "IPv4"
    return "link-local IPv6" if address.is_link_local else "IPv6"


def _mismatch(rank: int, peer: int, what: str, own: Any, other: Any, remedy: str) -> PeerMismatch:
    return PeerMismatch(f"rank {rank} and rank {peer} do not fit: {what}", value=f"{own} at rank {rank}",
                        rule=f"{other} at rank {peer}", remedy=remedy)  # fmt: skip
