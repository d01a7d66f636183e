"""The handle of a dispatch between hosts, and checks on what comes back with one. Leans on ep.tensor_checks, errors."""

from __future__ import annotations

from typing import Any, TypeAlias

from rdmakit.ep.buffer_base import BufferBase
from rdmakit.ep.internode import Internode
from rdmakit.ep.internode_pods import Route
from rdmakit.ep.tensors import Tensor
from rdmakit.errors import BadArgument, BadState

__all__ = ["HostsHandle", "check_between_hosts", "unpack_hosts_handle"]

PARTS = 10
Parts: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class HostsHandle(Parts):
    """DeepEP's handle of a dispatch between hosts, its matrices with one channel.

    (is_token_in_rank bool `[num_tokens, num_ranks]`; rdma_channel_prefix_matrix `[num_hosts, 1]`, tokens to each host;
    gbl_channel_prefix_matrix `[num_ranks, 1]`, to each rank; recv_rdma_channel_prefix_matrix `[num_hosts, 1]`, zeros;
    recv_rdma_rank_prefix_sum `[num_hosts]`, tokens that cross to this rank from hosts up to each;
    recv_gbl_channel_prefix_matrix `[num_ranks, 1]`, zeros; recv_gbl_rank_prefix_sum `[num_ranks]`, rows received from
    ranks up to each; recv_src_meta uint8 `[rows, 4]`, the token of its source as an int32; send_rdma_head
    `[num_tokens, num_hosts]`, a token's place among those of its channel, negative where it does not go; send_nvl_head
    `[…, ranks of a host]`, places of forwarded tokens.) All but the first and the eighth are int32. `plan` and `route`
    are what rdmakit goes by: pass the handle on as it is.
    """

    plan: Tensor
    route: Route
    rows: int

    @classmethod
    def of(cls, parts: Parts, plan: Tensor, route: Route, rows: int) -> HostsHandle:
        """The ten parts with the plan."""
        found = cls(parts)
        found.plan, found.route, found.rows = plan, route, rows
        return found


def unpack_hosts_handle(buffer: BufferBase, handle: Any) -> HostsHandle:
    """The handle itself, once it is known to be one of this Buffer's shape."""
    if not isinstance(handle, HostsHandle):
        seen = f"{type(handle).__name__} of {len(handle)}" if hasattr(handle, "__len__") else type(handle).__name__
        raise BadArgument("that is no handle of a dispatch between hosts", value=seen,
                          rule=f"the tuple of {PARTS} that dispatch returned, not a copy of its parts",
                          remedy="keep the fifth result of dispatch(…) without handle=")  # fmt: skip
    if tuple(handle[0].shape) != (handle.route.tokens, buffer.group_size) or len(handle[4]) != buffer._hosts:
        raise BadArgument("the handle is of another group", value=tuple(handle[0].shape),
                          rule=f"{buffer.group_size} ranks on {buffer._hosts} hosts",
                          remedy="use the Buffer that made it")  # fmt: skip
    return handle


def check_between_hosts(buffer: BufferBase, name: str) -> Internode:
    """The engine between hosts; BadState where there is none, no memory for it, or a graph that would need it."""
    engine = buffer._engine()
    if buffer._hosts == 1:
        raise BadState(f"{name} on one host", value=1, rule="it moves rows between hosts",
                       remedy=f"call {name.removeprefix('internode_')}, which goes over NVLink; or make hosts by "
                              "ranks_per_host= or RDMAKIT_RANKS_PER_HOST")  # fmt: skip
    if buffer.num_rdma_bytes == 0:
        raise BadState("the Buffer has no memory for rings between hosts", value=0, rule="num_rdma_bytes > 0",
                       remedy="num_rdma_bytes=Config().get_rdma_buffer_size_hint(hidden_bytes, ranks)")  # fmt: skip
    if buffer._backend.capturing():
        raise BadState(f"{name} cannot be captured into a CUDA graph", value=name,
                       rule="its epochs are arguments of launches, which a replay would repeat",
                       remedy="call it outside of graphs")  # fmt: skip
    found: Any = engine
    return found  # type: ignore[no-any-return]
