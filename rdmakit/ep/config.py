"""DeepEP's `Config` and its size hints: how many SMs a call may use, and how many bytes a Buffer should have.

Leans on nvl_memory, rendezvous and tensor_checks. DeepEP moves rows through rings of chunks, and its Config sizes them;
rdmakit puts rows straight where they belong, and has chunks of a size of its own between hosts only. Their sizes are
kept and checked, so that programs that tune them run.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.ep.layout import FP8_BLOCK
from rdmakit.ep.nvl_memory import low_latency_bytes
from rdmakit.ep.rendezvous import asked_ranks_per_host
from rdmakit.ep.tensor_checks import check_positive
from rdmakit.ep.tensors import kernels_on_cpu
from rdmakit.errors import BadArgument

__all__ = ["Config", "get_low_latency_rdma_size_hint"]

ALIGNMENT = 128
MAX_NVLINK_RANKS = 8  # of one host
HINT_TOKENS = 4096  # of one rank in one call: what the hints make room for
META_BYTES = 256  # a row's top-k indices and weights (up to 16) and its source


@dataclass(frozen=True)
class Config:
    """`num_sms` is what one dispatch or combine takes; the rest are DeepEP's chunk sizes in tokens (see above).

    BadArgument for what DeepEP refuses as well: an empty chunk, or one that does not fit its ring.

    >>> Config(24, 8, 256).num_sms
    24
    """

    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self) -> None:
        check_positive(**{name: value for name, value in vars(self).items() if name != "num_sms"})
        if isinstance(self.num_sms, bool) or not isinstance(self.num_sms, int) or self.num_sms < 0:
            raise BadArgument("num_sms is no number of SMs", value=self.num_sms, rule="an int >= 0",
                              remedy="use 24, or what Buffer.num_sms has")  # fmt: skip
        for wire in ("nvl", "rdma"):
            send = getattr(self, f"num_max_{wire}_chunked_send_tokens")
            receive = getattr(self, f"num_max_{wire}_chunked_recv_tokens")
            if send >= receive:
                raise BadArgument(
                    f"a chunk does not fit its ring ({wire})", value=send,
                    rule=f"num_max_{wire}_chunked_send_tokens < num_max_{wire}_chunked_recv_tokens = {receive}",
                    remedy="send smaller chunks",
                )  # fmt: skip

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_nvl_bytes`: room to receive 4096 tokens of every rank of a host, of `hidden_bytes` each.

        A Buffer with less works, too: rows that find no room are staged and copied.

        >>> Config().get_nvl_buffer_size_hint(14336, 2) == 2 * 4096 * (14336 + 14336 // 64 + 256)
        True
        """
        check_positive(hidden_bytes=hidden_bytes, num_ranks=num_ranks)
        row = hidden_bytes + hidden_bytes // 64 + META_BYTES
        return _aligned(min(num_ranks, MAX_NVLINK_RANKS) * HINT_TOKENS * row)

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_rdma_bytes` of normal dispatch: rings to and from each other host; 0 for one host.

        A host has 8 ranks, or what RDMAKIT_RANKS_PER_HOST says; without it, where kernels run on the CPU, 1, which
        needs most.

        >>> Config().get_rdma_buffer_size_hint(14336, 8)
        0
        """
        check_positive(hidden_bytes=hidden_bytes, num_ranks=num_ranks)
        each = asked_ranks_per_host() or (1 if kernels_on_cpu() else MAX_NVLINK_RANKS)
        hosts = -(-num_ranks // each)
        if hosts == 1:
            return 0
        row = hidden_bytes + hidden_bytes // 64 + META_BYTES
        return _aligned(2 * (self.num_sms // 2) * hosts * self.num_max_rdma_chunked_recv_tokens * row)


def get_low_latency_rdma_size_hint(
    num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
) -> int:
    """Bytes for `num_rdma_bytes` in low-latency mode: what dispatch and combine of BF16 rows need at most.

    Twice (one call may still be read while the next arrives): for each token of each rank a row that comes, a sum that
    comes home, and what goes with them. A row crosses once for each rank, not once for each expert, so this is a
    fraction of DeepEP's, and `num_experts` does not count.

    >>> get_low_latency_rdma_size_hint(128, 7168, 8, 288) >> 20
    56
    """
    check_positive(
        num_max_dispatch_tokens_per_rank=num_max_dispatch_tokens_per_rank, hidden=hidden, num_ranks=num_ranks,
        num_experts=num_experts,
    )  # fmt: skip
    if hidden % FP8_BLOCK:
        raise BadArgument("hidden is no multiple of the FP8 block", value=hidden, rule=f"hidden % {FP8_BLOCK} == 0",
                          remedy=f"pad it to {_aligned(hidden)}")  # fmt: skip
    if num_experts % num_ranks:
        raise BadArgument("experts cannot be split evenly over ranks", value=num_experts,
                          rule=f"num_experts % {num_ranks} == 0", remedy="pad the experts")  # fmt: skip
    return low_latency_bytes(num_ranks, num_max_dispatch_tokens_per_rank, hidden)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
