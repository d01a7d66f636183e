"""What the normal calls of Buffer accept: rows, layouts, top-k, handles, biases. BadArgument for the rest.

Leans on ep.buffer_base and ep.tensor_checks. Nothing here looks at values or enqueues anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from rdmakit.ep.buffer_base import BufferBase
from rdmakit.ep.config import Config
from rdmakit.ep.tensor_checks import check_even_sms, check_tensor
from rdmakit.ep.tensors import Tensor
from rdmakit.errors import BadArgument, BadState

__all__ = [
    "Handle",
    "Rows",
    "check_layout",
    "check_rows",
    "check_topk",
    "number_of_sms",
    "unpack_bias",
    "unpack_handle",
]

VECTOR = 16  # bytes that a thread moves at once: rows are multiples of it
HANDLE_PARTS = 6

Rows: TypeAlias = Tensor | tuple[Tensor, Tensor]
Handle: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def number_of_sms(buffer: BufferBase, config: Config | None, default: int, least: int = 2) -> int:
    """SMs of a call; BadState where the Buffer has no memory for it."""
    if buffer.num_nvl_bytes == 0:
        raise BadState("the Buffer has no memory for dispatch and combine", value=0, rule="num_nvl_bytes > 0",
                       remedy="Buffer(group, num_nvl_bytes=Config().get_nvl_buffer_size_hint(hidden_bytes, ranks))",
                       )  # fmt: skip
    num_sms, most = default if config is None else config.num_sms, int(buffer._undestroyed().max_sms)
    check_even_sms(num_sms)
    if not least <= num_sms <= most:
        raise BadArgument("a call with that many SMs cannot run", value=num_sms, rule=f"{least} … {most}",
                          remedy="Buffer.set_num_sms(24), or config=Config(24)")  # fmt: skip
    return num_sms


def check_rows(buffer: BufferBase, x: Any, scales: Any, tokens: int | str = "num_tokens") -> None:
    """Rows to move: of any dtype without scales, FP8 with them."""
    kinds, where = buffer._backend.kinds, buffer.device
    allowed = (getattr(x, "dtype", None),) if scales is None else (kinds.float8,)
    check_tensor("x", x, where, allowed, (tokens, "hidden"))
    row_bytes = x.shape[1] * x.element_size()
    if row_bytes == 0 or row_bytes % VECTOR:
        raise BadArgument("a row of x cannot be moved", value=f"{row_bytes} bytes",
                          rule=f"a positive multiple of {VECTOR} bytes", remedy="pad hidden")  # fmt: skip
    if scales is not None:
        check_tensor("scales of x", scales, where, (kinds.float32, kinds.int32), (x.shape[0], "n"), contiguous=False)


def check_layout(buffer: BufferBase, tokens: int, per_rank: Any, in_rank: Any, per_expert: Any) -> None:
    """The results of get_dispatch_layout, all of them."""
    named = {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}
    missing = [name for name, value in named.items() if value is None]
    if missing:
        raise BadArgument("dispatch does not know where tokens go", value=f"no {', '.join(missing)}",
                          rule="either a handle or the results of get_dispatch_layout",
                          remedy="call get_dispatch_layout(topk_idx, num_experts) first")  # fmt: skip
    kinds, ranks, where = buffer._backend.kinds, buffer.group_size, buffer.device
    check_tensor("num_tokens_per_rank", per_rank, where, (kinds.int32,), (ranks,))
    check_tensor("is_token_in_rank", in_rank, where, (kinds.bool,), (tokens, ranks))
    check_tensor("num_tokens_per_expert", per_expert, where, (kinds.int32,), ("num_experts",))
    buffer._local_experts(per_expert.shape[0])


def check_topk(buffer: BufferBase, tokens: int, topk_idx: Any, topk_weights: Any, num_worst_tokens: int) -> int:
    """How many choices a token has; 0 without top-k."""
    if (topk_idx is None) != (topk_weights is None):
        raise BadArgument("half of top-k", value=f"no {'topk_idx' if topk_idx is None else 'topk_weights'}",
                          rule="topk_idx and topk_weights, or neither", remedy="pass both")  # fmt: skip
    if num_worst_tokens < 0 or (num_worst_tokens and topk_idx is None):
        raise BadArgument("num_worst_tokens cannot be used", value=num_worst_tokens,
                          rule="0, or positive with topk_idx and topk_weights: they tell which rows came",
                          remedy="pass topk_idx and topk_weights")  # fmt: skip
    if not num_worst_tokens and buffer._backend.capturing():
        raise BadState("dispatch waits for counts, which no CUDA graph can", value=num_worst_tokens,
                       rule="num_worst_tokens > 0, or a handle, while a stream is captured",
                       remedy="pass num_worst_tokens=num_ranks * max_tokens")  # fmt: skip
    if topk_idx is None:
        return 0
    kinds, where = buffer._backend.kinds, buffer.device
    check_tensor("topk_idx", topk_idx, where, (kinds.int64,), (tokens, "num_topk"))
    topk = int(topk_idx.shape[1])
    check_tensor("topk_weights", topk_weights, where, (kinds.float32,), (tokens, topk))
    return topk


def unpack_handle(buffer: BufferBase, handle: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a handle of dispatch: prefix, recv_src_idx, is_token_in_rank, positions."""
    if not isinstance(handle, tuple | list) or len(handle) != HANDLE_PARTS:
        seen = f"{type(handle).__name__} of {len(handle)}" if hasattr(handle, "__len__") else type(handle).__name__
        raise BadArgument("that is no handle of dispatch", value=seen, rule=f"a tuple of {HANDLE_PARTS}",
                          remedy="keep the fifth result of dispatch(…) without handle=")  # fmt: skip
    prefix, _, _, src_idx, in_rank, positions = handle
    int32, ranks, where = (buffer._backend.kinds.int32,), buffer.group_size, buffer.device
    check_tensor("rank_prefix_matrix of the handle", prefix, where, int32, (ranks, ranks))
    check_tensor("recv_src_idx of the handle", src_idx, where, int32, ("rows",))
    check_tensor("send_head of the handle", positions, where, int32, ("num_tokens", ranks))
    return prefix, src_idx, in_rank, positions


def unpack_bias(buffer: BufferBase, bias: Any, tokens: int, hidden: int) -> tuple[Tensor | None, Tensor | None]:
    """Two biases, or one and None, or none."""
    both = bias if isinstance(bias, tuple) else (bias, None)
    if len(both) != 2:
        raise BadArgument("too many or too few biases", value=len(both), rule="one tensor, or a tuple of two",
                          remedy="add them up before")  # fmt: skip
    for place, each in enumerate(both):
        if each is not None:
            check_tensor(f"bias {place}", each, buffer.device, (buffer._backend.kinds.bfloat16,), (tokens, hidden))
    return both[0], both[1]
