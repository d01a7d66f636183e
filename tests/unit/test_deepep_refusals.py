"""What Buffer refuses: each error names the value, the rule and the remedy, before anything is enqueued."""

import gc
import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
from deepep_rig import Comm, Meeting, Rig  # noqa: E402

from rdmakit.ep import engine as engines  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.ep.config import Config  # noqa: E402
from rdmakit.errors import BadArgument, BadState, HangError, NotAvailable  # noqa: E402

TOKENS, HIDDEN, EXPERTS = 4, 256, 4


@pytest.fixture
def rig(monkeypatch):
    return Rig(monkeypatch, ranks=1)


@pytest.fixture
def buffer(rig):
    return rig.make(num_nvl_bytes=1 << 20)[0]


@pytest.fixture
def arguments(buffer):
    idx = torch.arange(TOKENS).view(-1, 1)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    return {
        "x": torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16), "num_tokens_per_rank": per_rank,
        "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert, "topk_idx": idx,
        "topk_weights": torch.ones(TOKENS, 1),
    }  # fmt: skip


def refused(kind, text, call, **arguments):
    with pytest.raises(kind, match=text) as caught:
        call(**arguments)
    assert caught.value.rule and caught.value.remedy
    return caught.value


FP8 = torch.float8_e4m3fn
BAD = {
    "no layout": ({"is_token_in_rank": None, "num_tokens_per_expert": None},
                  "no is_token_in_rank, num_tokens_per_expert"),
    "half of top-k": ({"topk_weights": None}, "no topk_weights"),
    "index of 32 bits": ({"topk_idx": torch.zeros(TOKENS, 1, dtype=torch.int32)}, r"topk_idx.to\(torch.int64\)"),
    "other tokens": ({"topk_idx": torch.zeros(TOKENS + 1, 1, dtype=torch.int64)}, r"rule: \[4, num_topk\]"),
    "weights of BF16": ({"topk_weights": torch.ones(TOKENS, 1, dtype=torch.bfloat16)}, "topk_weights has the wrong"),
    "rows of 24 bytes": ({"x": torch.ones(TOKENS, 12, dtype=torch.bfloat16)}, "24 bytes"),
    "transposed": ({"x": torch.ones(HIDDEN, TOKENS, dtype=torch.bfloat16).T}, r"x is not contiguous.*\n.*x.contiguous"),
    "no tensor": ({"x": [1, 2]}, "x is no tensor"),
    "BF16 with scales": ({"x": (torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16), torch.ones(TOKENS, 2))},
                         "x has the wrong dtype"),
    "scales of BF16": ({"x": (torch.ones(TOKENS, HIDDEN).to(FP8), torch.ones(TOKENS, 2, dtype=torch.bfloat16))},
                       "scales of x has the wrong dtype"),
    "scales of others": ({"x": (torch.ones(TOKENS, HIDDEN).to(FP8), torch.ones(3, 2))}, "scales of x has the wrong sh"),
    "alignment": ({"expert_alignment": 0}, "expert_alignment is no positive"),
    "worst": ({"num_worst_tokens": 8, "topk_idx": None, "topk_weights": None}, "num_worst_tokens cannot be used"),
    "SMs": ({"config": Config(66)}, r"value 66.*\n.*2 … 64"),
    "odd SMs": ({"config": Config(13)}, "no even number"),
    "allocation": ({"allocate_on_comm_stream": True}, "allocate_on_comm_stream alone"),
    "elsewhere": ({"x": torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16, device="meta")}, "lies on another device"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_dispatch_refuses(buffer, arguments, name):
    changes, text = BAD[name]
    before = len(buffer.runtime.calls)
    refused(BadArgument, text, buffer.dispatch, **{**arguments, **changes})
    assert len(buffer.runtime.calls) == before, "nothing was enqueued"


def test_handles_are_looked_at(buffer, arguments):
    x = arguments["x"]
    _, _, _, _, handle, _ = buffer.dispatch(**arguments)
    refused(BadArgument, "a cached dispatch with top-k", buffer.dispatch, x=x, handle=handle,
            topk_idx=arguments["topk_idx"])  # fmt: skip
    refused(BadArgument, "no handle of dispatch .value tuple of 5", buffer.dispatch, x=x, handle=handle[:5])
    refused(BadArgument, "no handle of dispatch", buffer.combine, x=x, handle=7)
    refused(BadArgument, r"rule: \[4, hidden\]", buffer.dispatch, x=x[:3], handle=handle)
    refused(BadArgument, r"rule: \[4, hidden\]", buffer.combine, x=x[:3], handle=handle)
    refused(BadArgument, r"x.to\(torch.bfloat16\)", buffer.combine, x=x.float(), handle=handle)
    refused(BadArgument, "topk_weights has the wrong shape", buffer.combine, x=x, handle=handle,
            topk_weights=torch.ones(3, 1))  # fmt: skip
    refused(BadArgument, "bias 0 has the wrong shape", buffer.combine, x=x, handle=handle, bias=x[:2])
    refused(BadArgument, "too many or too few biases", buffer.combine, x=x, handle=handle, bias=(x, x, x))


def test_layouts_are_looked_at(buffer):
    idx = torch.zeros(4, 2, dtype=torch.int64)
    refused(BadArgument, "experts cannot be split", buffer.get_dispatch_layout, topk_idx=idx, num_experts=0)
    refused(BadArgument, "not contiguous", buffer.get_dispatch_layout, topk_idx=idx.T, num_experts=4)
    refused(BadState, "no event to wait for", buffer.get_dispatch_layout(idx, 4)[4].current_stream_wait)


def test_what_is_not_supported_is_refused_by_name(rig, buffer):
    refused(NotAvailable, "use_fabric is not supported", rig.make, use_fabric=True)
    rig.make(allow_mnnvl=True)
    refused(NotAvailable, "allow_nvlink_for_low_latency_mode=False", rig.make, low_latency_mode=True,
            allow_nvlink_for_low_latency_mode=False)  # fmt: skip
    for name in ("internode_dispatch", "internode_combine"):
        refused(BadState, f"{name} on one host", getattr(buffer, name), x=None, handle=None)


def test_hosts_that_cannot_be(monkeypatch):
    rig = Rig(monkeypatch, ranks=2)
    for each in (3, 0, -1, 1.0, True):
        refused(BadArgument, "ranks cannot be split evenly over hosts", rig.make, num_nvl_bytes=8, ranks_per_host=each)
    refused(NotAvailable, "low_latency_mode is not supported between hosts", rig.make, low_latency_mode=True,
            ranks_per_host=1)  # fmt: skip
    refused(NotAvailable, "enable_shrink is not supported between hosts", rig.make, enable_shrink=True,
            ranks_per_host=1)  # fmt: skip
    monkeypatch.setenv("RDMAKIT_RANKS_PER_HOST", "two")
    refused(BadArgument, "RDMAKIT_RANKS_PER_HOST is no number of ranks .value two", rig.make, num_nvl_bytes=1024)
    asked = iter([1, 2])
    monkeypatch.setattr(engines, "asked_ranks_per_host", lambda: next(asked))
    refused(BadArgument, "ranks do not agree on ranks_per_host", rig.make, num_nvl_bytes=1024)


def test_a_group_that_spans_hosts(monkeypatch):
    rig = Rig(monkeypatch, ranks=2)
    hosts = iter(["one", "other"])
    monkeypatch.setattr(engines, "host_identity", lambda: next(hosts))
    refused(NotAvailable, "enable_shrink is not supported between hosts", rig.make, enable_shrink=True)


def test_construction(rig):
    refused(BadArgument, "nobody to communicate with", Buffer, group=None)
    refused(BadArgument, "group is no process group", Buffer, group=3)
    refused(BadArgument, "comm is no communicator", Buffer, group=None, comm=3)
    refused(BadArgument, "num_nvl_bytes is negative", rig.make, num_nvl_bytes=-1)
    refused(BadArgument, "num_qps_per_rank", rig.make, num_qps_per_rank=0)
    (buffer,) = rig.make(num_nvl_bytes=0)
    layout = buffer.get_dispatch_layout(torch.zeros(1, 1, dtype=torch.int64), 1)
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    refused(BadState, "num_nvl_bytes > 0", buffer.dispatch, x=x, num_tokens_per_rank=layout[0],
            is_token_in_rank=layout[3], num_tokens_per_expert=layout[2])  # fmt: skip


@pytest.mark.parametrize("called", [True, False], ids=["by the next call", "by destroy"])
def test_what_kernels_report_is_raised(rig, called):
    """Of what was enqueued and has returned: once, and the memory is given back."""
    (buffer,) = rig.make(num_nvl_bytes=1024, explicitly_destroy=True)
    engine = buffer.runtime
    engine.wrong = HangError("a kernel waited for a slot from the sender", rule="it waited 60 s", remedy="-")
    if called:
        idx = torch.zeros(4, 1, dtype=torch.int64)
        for _ in range(2):
            refused(HangError, "a slot from the sender", buffer.get_dispatch_layout, topk_idx=idx, num_experts=EXPERTS)
        buffer.destroy()
    else:
        refused(HangError, "a slot from the sender", buffer.destroy)
    assert engine.closed and buffer.runtime is None
    refused(BadState, "the Buffer is destroyed", buffer.destroy)


def test_destruction(rig):
    (buffer,) = rig.make(num_nvl_bytes=1024, explicitly_destroy=True)
    engine = buffer.runtime
    buffer.destroy()
    assert engine.closed and buffer.runtime is None and ("synchronize",) in rig.cpu.log
    refused(BadState, "the Buffer is destroyed", buffer.get_local_buffer_tensor, dtype=torch.uint8)
    refused(BadState, "the Buffer is destroyed", buffer.destroy)

    (buffer,) = rig.make(num_nvl_bytes=1024)
    engine = buffer.runtime
    rig.buffers = None
    del buffer
    gc.collect()
    assert engine.closed

    buffer = Buffer(None, 1024, explicitly_destroy=True, comm=Comm(Meeting(1), 0))
    engine = buffer.runtime
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del buffer
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning] and not engine.closed


def test_the_local_buffer(buffer):
    whole = buffer.get_local_buffer_tensor(torch.uint8)
    assert whole.shape == (1 << 20,) and whole.data_ptr() == buffer.runtime.heap_address
    part = buffer.get_local_buffer_tensor(torch.bfloat16, torch.Size((2, 8)), offset=16, use_rdma_buffer=True)
    part.fill_(1)
    assert part.shape == (2, 8) and whole[31] == 0 and whole[32:64].any() and not whole[64:].any()
    refused(BadArgument, "beyond the Buffer's memory", buffer.get_local_buffer_tensor, dtype=torch.float32,
            size=torch.Size((1 << 18,)), offset=1)  # fmt: skip
    refused(BadArgument, "beyond the Buffer's memory", buffer.get_local_buffer_tensor, dtype=torch.float32, offset=-1)
