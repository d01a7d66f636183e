"""What agents, words of memory and places in code are called in one scene.

Leans on emu (names of memory, source lines) and device (fields of the PODs that kernels share with NICs).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdmakit.device import SQ_STATE
from rdmakit.emu.symbols import source_line

if TYPE_CHECKING:
    from rdmakit.explore.explorer import Explorer

__all__ = ["Names"]

SCOPES = ("cta", "gpu", "sys")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+\s+(\S.*)$")
_OFFSET = re.compile(r"^(.*) \+ 0x([0-9a-f]+)$")
_ELEMENT = re.compile(r"^(.*)\[(\d+)\]$")
_NUMBERED = re.compile(r" of (?:QP|CQ) 0x[0-9a-f]+")
_STATE_FIELDS = {offset: name for name, (_, offset, *_) in (SQ_STATE.fields or {}).items()}


class Names:
    """What agents, addresses and places in code are called in one scene."""

    def __init__(self, explorer: Explorer) -> None:
        world = explorer.scene._world
        assert world is not None
        self.world = world
        self._agents: dict[int, dict[str, Any]] = explorer.core.agents()
        self.active = set(self._agents)  # those that do anything worth telling
        self._lines: dict[int, str] = {}
        self._named: dict[int, str] = {}
        queues = {(a["hca"], a["qpn"]) for a in self._agents.values() if "hca" in a}
        self._shared = explorer.core.shared()
        self.mbarriers: set[int] = explorer.core.mbarriers()
        self._one_queue_each = len(queues) == len({hca for hca, _ in queues})

    # ---- agents
    def is_nic(self, number: int) -> bool:
        """Whether an agent is one side of a queue pair."""
        return "hca" in self._agents.get(number, {})

    def is_copy(self, number: int) -> bool:
        """Whether an agent is a bulk copy."""
        return "bulk" in self._agents.get(number, {})

    def queue(self, number: int) -> tuple[int, int]:
        """(HCA, QP number) of an agent that is a NIC's."""
        found = self._agents[number]
        return found["hca"], found["qpn"]

    def agent(self, number: int) -> str:
        """ "rank 1 receive", "NIC 0", and the QP where a NIC has several."""
        known = self._agents.get(number)
        if known is None:
            return "the host"
        if "bulk" in known:
            return f"{self.agent(known['bulk'])}'s bulk copy"
        if "kernel" in known:
            return f"rank {known['rank']} {known['kernel']}{self._which(known)}"
        return f"NIC {known['hca']}" + ("" if self._one_queue_each else f" QP {known['qpn']:#x}")

    def _which(self, stream: dict[str, Any]) -> str:
        """Block and warp or thread, as far as they tell a stream from others of its launch."""
        launch = stream["rank"], stream["kernel"]
        alike = [a for n, a in self._agents.items() if (a.get("rank"), a.get("kernel")) == launch and n in self.active]
        threads, blocks = {a["thread"] for a in alike}, {tuple(a["block"]) for a in alike}
        block = f" block {stream['block'][0]}" if len(blocks) > 1 else ""
        if len(threads) < 2:
            return block
        warps = len({thread // 32 for thread in threads}) == len(threads)
        return f"{block} warp {stream['thread'] // 32}" if warps else f"{block} thread {stream['thread']}"

    def lane(self, number: int) -> str:
        """The column of an agent in a picture: kernels have one each, a NIC one for all of its queue pairs."""
        known = self._agents.get(number, {})
        return f"NIC {known['hca']}" if "hca" in known else self.agent(number)

    def lanes(self) -> list[str]:
        """All columns, so that a rank stands beside its NIC, and NICs that talk beside each other."""
        sides: dict[int, list[str]] = {}
        shape = self.world.topology
        for number, known in self._agents.items():
            if "bulk" in known:
                known = self._agents[known["bulk"]]
            if "hca" in known:
                side = known["hca"]
            else:
                rank = self.world.ranks[known["rank"]]
                side = shape.nic_index(rank.host, rank.nics[0])
            sides.setdefault(side, []).append(self.lane(number))
        found: list[str] = []
        for place, side in enumerate(sorted(sides)):
            mine = sorted(dict.fromkeys(sides[side]), key=lambda lane: (lane.startswith("NIC"), lane))
            found += mine if place % 2 == 0 else mine[::-1]
        return list(dict.fromkeys(found))

    # ---- memory
    def raw(self, address: int) -> str:
        """The name that the address book has for a word, "" for none."""
        found = self._named.get(address)
        if found is None:
            found = self._named[address] = self.world.addresses.name_of(address) or self._in_shared(address)
        return found

    def _in_shared(self, address: int) -> str:
        """ "shared out[3]": word (of 8 bytes) of a variable in shared memory."""
        for at, nbytes, name, _, _ in self._shared:
            if at <= address < at + nbytes:
                return f"shared {name}[{(address - at) // 8}]"
        return ""

    def address(self, address: int) -> str:
        """The name of a word as a story says it, or its address."""
        name = self.raw(address)
        if not name:
            return f"{address:#x}"
        if name.startswith("doorbell record of QP"):
            which = "the doorbell record" if name.endswith("[1]") else "the receive doorbell record"
            return which if self._one_queue_each else which + name.removeprefix("doorbell record")[:-3]
        split = _OFFSET.match(name)
        if split and split[1].startswith("SqState"):
            field = _STATE_FIELDS.get(int(split[2], 16))
            name = f"{split[1]}.{field}" if field else name
        return self.short(name)

    def span(self, address: int, nbytes: int) -> str:
        """ "sink[0…31]" of several elements of one array."""
        first, last = (_ELEMENT.match(self.raw(at)) for at in (address, max(address, address + nbytes - 1)))
        if last is None:  # the last byte of an element has no index of its own
            for size in (2, 4, 8):
                last = last or _ELEMENT.match(self.raw(address + nbytes - size))
        if first and last and first[1] == last[1] and first[2] != last[2]:
            return self.short(f"{first[1]}[{first[2]}…{last[2]}]")
        return self.address(address)

    def short(self, name: str) -> str:
        """Without numbers of queue pairs, where each NIC has one only."""
        return _NUMBERED.sub("", name) if self._one_queue_each else name

    def register(self, hca: int, qpn: int) -> int:
        """Address of the doorbell register of a queue pair."""
        return int(self.world._core.query_qp(hca, qpn)["uar_register"])

    # ---- code
    def place(self, step: dict[str, Any]) -> str:
        """ "queue.cuh:90", or nothing."""
        if step["file"]:
            return f"{Path(step['file']).name}:{step['line']}"
        if not step["line"]:
            return ""
        line = self._lines.get(step["line"])
        if line is None:
            line = self._lines[step["line"]] = _line_of(step["line"])
        return line

    def strength(self, access: dict[str, Any]) -> str:
        """ " (plain)" or " (gpu scope)" of one side of a race."""
        return f" ({SCOPES[min(access['scope'], 2)]} scope)" if access["strong"] else " (plain)"


def _line_of(pc: int) -> str:
    """ "put_signal.cu:24" of an instruction that a shared object of ours holds; "" when nobody can say."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = [m for m in map(_MAPPING.match, maps.splitlines()) if m]
    for mapping in found:
        if int(mapping[1], 16) <= pc < int(mapping[2], 16):
            base = next(int(m[1], 16) for m in found if m[4] == mapping[4])
            return Path(source_line(mapping[4], [pc - 1 - base])).name
    return ""
