"""Host-posted atomics: fetch-and-add, compare-and-swap, and the masked ones of 4 and 8 bytes.

Leans on verbs. The old value lands in `landing`, local memory of exactly the atomic's width: 8-byte ones in
host order on a device whose `atomic_req_8B_endianness_mode` is set (the usual case), 4-byte ones big endian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rdmakit.device.verbs import Verbs
from rdmakit.errors import BadArgument
from rdmakit.layout import encode

__all__ = ["Atomics"]


class Atomics(Verbs):
    """The atomic verbs of `QP`; common arguments as in `Verbs`."""

    def _post_atomic(
        self,
        build: Callable[..., bytes],
        landing: Any,
        remote: Any,
        flags: int,
        wr_id: Any,
        **operands: int | None,
    ) -> int:
        sges, (raddr, rkey) = self._sges(landing), self._remote(remote)
        if len(sges) != 1:
            raise BadArgument("an atomic lands in one place", value=len(sges), rule="one landing buffer",
                              remedy="pass one slice of a region")
        return self._post(
            lambda index: build(
                index=index, qpn=self.qpn, raddr=raddr, rkey=rkey, sge=sges[0], flags=flags, **operands
            ),
            wr_id,
        )

    def post_fetch_add(
        self,
        landing: Any,
        remote: Any,
        add: int,
        *,
        signalled: bool = True,
        fence: str = "none",
        wr_id: Any = None,
    ) -> int:
        """Add `add` to the 8 bytes at `remote`, mod 2**64."""
        flags = self._flags(signalled, fence, False)
        return self._post_atomic(encode.fetch_add, landing, remote, flags, wr_id, add=add)

    def post_cmp_swap(
        self,
        landing: Any,
        remote: Any,
        compare: int,
        swap: int,
        *,
        signalled: bool = True,
        fence: str = "none",
        wr_id: Any = None,
    ) -> int:
        """Replace the 8 bytes at `remote` by `swap` if they equal `compare`."""
        flags = self._flags(signalled, fence, False)
        return self._post_atomic(encode.compare_swap, landing, remote, flags, wr_id, compare=compare, swap=swap)

    def post_masked_fetch_add(
        self,
        landing: Any,
        remote: Any,
        add: int,
        *,
        boundary: int = 0,
        width: int = 8,
        signalled: bool = True,
        fence: str = "none",
        wr_id: Any = None,
    ) -> int:
        """Add without carrying over the bits set in `boundary` (all ones: XOR). `width` is 4 or 8 bytes."""
        flags = self._flags(signalled, fence, False)
        return self._post_atomic(
            encode.masked_fetch_add, landing, remote, flags, wr_id, add=add, boundary=boundary, width=width
        )

    def post_masked_cmp_swap(
        self,
        landing: Any,
        remote: Any,
        compare: int,
        swap: int,
        *,
        compare_mask: int | None = None,
        swap_mask: int | None = None,
        width: int = 8,
        signalled: bool = True,
        fence: str = "none",
        wr_id: Any = None,
    ) -> int:
        """Where the bits of `compare_mask` match, replace those of `swap_mask`; masks default to all ones.

        The 8-byte form takes two basic blocks.
        """
        flags = self._flags(signalled, fence, False)
        return self._post_atomic(
            encode.masked_compare_swap,
            landing,
            remote,
            flags,
            wr_id,
            compare=compare,
            swap=swap,
            compare_mask=compare_mask,
            swap_mask=swap_mask,
            width=width,
        )
