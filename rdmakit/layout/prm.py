"""Commands to the device itself: structures of bits, big endian, as the mlx5 PRM counts them. Built and read by name.

Leans on errors. `prm_commands` has the structures. Bit 0 is the first byte's highest, as in rdma-core
providers/mlx5/mlx5_ifc.h, whose gaps are named reserved_at_OFFSET.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rdmakit.errors import BadArgument

__all__ = ["PrmField", "PrmStructure"]


class PrmField(NamedTuple):
    """`width` bits from bit `at` on; `source` says where rdma-core, or the kernel, has it."""

    at: int
    width: int
    source: str


class PrmStructure:
    """Named fields in `nbytes` bytes. `source` is the file and struct; `fields` are (first bit, width) by its names.

    `parts` lays another structure in at a bit: its fields are then named `part.field`. `elsewhere` names a field's own
    source, where it is not `source`.

    >>> path = PrmStructure("ads", 8, "mlx5_ifc.h mlx5_ifc_ads_bits", {"pkey_index": (0x10, 16)})
    >>> command = PrmStructure("modify", 16, "PRM", {"opcode": (0, 16)}, parts={"path": (0x40, path)})
    >>> command.pack({"opcode": 0x502, "path.pkey_index": 7}).hex()
    '05020000000000000000000700000000'
    >>> command.get(command.pack({"path.pkey_index": 7}), "path.pkey_index")
    7
    >>> command.fields["path.pkey_index"]
    PrmField(at=80, width=16, source='mlx5_ifc.h mlx5_ifc_ads_bits.pkey_index')
    """

    def __init__(
        self,
        name: str,
        nbytes: int,
        source: str,
        fields: Mapping[str, tuple[int, int]],
        parts: Mapping[str, tuple[int, PrmStructure]] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.nbytes = nbytes
        own = elsewhere or {}
        self.fields = {
            field: PrmField(at, width, own.get(field, f"{source}.{field}")) for field, (at, width) in fields.items()
        }
        for part, (base, inner) in (parts or {}).items():
            for field, (at, width, cited) in inner.fields.items():
                self.fields[f"{part}.{field}"] = PrmField(base + at, width, cited)

    def _field(self, name: str) -> PrmField:
        found = self.fields.get(name)
        if found is None:
            raise BadArgument(f"{self.name} has no such field", value=name, rule="one of " + ", ".join(self.fields),
                              remedy="name it as mlx5_ifc.h does")
        return found

    def pack(self, values: Mapping[str, int]) -> bytes:
        """The structure with these values, all else 0. BadArgument for a name or a value that it has no room for."""
        bits = 0
        for name, value in values.items():
            at, width, source = self._field(name)
            if not 0 <= value < 1 << width:
                raise BadArgument(f"{self.name}.{name} does not fit", value=value, rule=f"{width} bits ({source})",
                                  remedy="choose a smaller one")
            bits |= int(value) << self.nbytes * 8 - at - width
        return bits.to_bytes(self.nbytes, "big")

    def get(self, raw: bytes, name: str) -> int:
        """One field of bytes in this layout; of bytes that end before it, 0, as devices answer old programs."""
        at, width, _ = self._field(name)
        whole = raw[: -(-(at + width) // 8)].ljust(-(-(at + width) // 8), b"\0")
        return int.from_bytes(whole, "big") >> (-(at + width) % 8) & (1 << width) - 1

    def unpack(self, raw: bytes) -> dict[str, int]:
        """Every field by its name."""
        return {name: self.get(raw, name) for name in self.fields}

    def __repr__(self) -> str:
        return f"<{self.name}: {self.nbytes} bytes, {len(self.fields)} fields>"
