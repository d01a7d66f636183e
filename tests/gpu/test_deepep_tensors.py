"""The torch seam of Buffer on a real GPU: tensors over memory that is not torch's, streams, events, CUDA graphs.

One rank, and an engine that copies: what is tested is what stands above it (tests/unit/test_deepep_* without a GPU).
"""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed (pip install cupy-cuda13x)")
torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

from rdmakit.ep import engine as engines  # noqa: E402
from rdmakit.ep import tensors  # noqa: E402
from rdmakit.ep.buffer import Buffer  # noqa: E402
from rdmakit.ep.events import EventOverlap  # noqa: E402

pytestmark = pytest.mark.gpu
TOKENS, HIDDEN = 64, 1024
DEVICE_TO_DEVICE = 3  # cudaMemcpyKind
LONG = 20_000_000  # clocks: about 10 ms


class Owner:
    def __init__(self, nbytes):
        self.memory = cupy.zeros(nbytes, cupy.uint8)
        self.address = self.memory.data.ptr


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "bfloat16", "float8_e4m3fn"])
def test_memory_of_others_as_a_tensor(kind):
    backend, dtype = tensors.backend(), getattr(torch, kind)
    owner = Owner(4 * 8 * dtype.itemsize)
    alive = weakref.ref(owner)
    tensor = backend.wrap(owner.address, (4, 8), dtype, backend.device(), owner)
    assert tensor.data_ptr() == owner.address and tensor.dtype == dtype and tensor.is_contiguous()
    tensor.copy_(torch.ones(4, 8, device="cuda").to(dtype))
    assert owner.memory.any()
    tensor.record_stream(backend.new_stream())
    part = tensor[1:, :3]
    del owner, tensor
    gc.collect()
    assert alive() is not None and part.float().eq(1).all()
    del part
    gc.collect()
    assert alive() is None


def test_no_bytes_need_no_owner():
    backend = tensors.backend()
    assert backend.wrap(0, (0, 8), torch.bfloat16, backend.device(), None).shape == (0, 8)


def test_defaults_of_the_program_do_not_matter():
    backend = tensors.backend()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("cuda")
    try:
        made = backend.empty((2, 2), torch.int32, backend.device())
        assert made.dtype == torch.int32 and backend.holds(made, backend.device())
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


class Block:
    """A slot of the engine's memory."""

    scales = 0

    def __init__(self, address, rows, row_bytes, topk):
        self.x = self.address = address
        self.nbytes = rows * (row_bytes + 12 * topk + 4)
        self.topk = self.x + rows * row_bytes
        self.weights = self.topk + 8 * topk * rows
        self.source = self.weights + 4 * topk * rows


class Copies:
    """An engine for one rank: what is sent arrives. Its memory is there before a graph is captured."""

    rank, ranks, max_sms, heap_bytes, heap_address, largest_block = 0, 1, 132, 0, 0, 1 << 30
    SLOT, SLOTS = 1 << 20, 8

    def __init__(self, *_, **__):
        self.returned = 0
        self.memory = cupy.zeros(self.SLOT * self.SLOTS, cupy.uint8)
        self.free = [self.memory.data.ptr + self.SLOT * slot for slot in range(self.SLOTS)]
        cupy.cuda.Device().synchronize()

    def check(self, *, unless_told=False):
        pass

    def copy(self, to, source, nbytes, stream):
        if nbytes:
            cupy.cuda.runtime.memcpyAsync(to, source, nbytes, DEVICE_TO_DEVICE, stream)

    def notify(self, in_rank, tokens, per_rank, per_expert, experts, alignment, positions, prefix, stream):
        self.rows = tokens

    def counts(self):
        return self.rows, [self.rows]

    def receive_block(self, rows, row_bytes, scale_bytes, topk, stream):
        address = self.free.pop(0)
        block = Block(address, rows, row_bytes, topk)
        weakref.finalize(block, self._take_back, address)
        return block

    def _take_back(self, address):
        self.returned += 1
        self.free.insert(0, address)

    def dispatch(self, x, row_bytes, scales, scale_bytes, topk_idx, topk_weights, topk, experts, tokens, positions,
                 prefix, received, rows, num_sms, stream):  # fmt: skip
        self.copy(received.x, x, tokens * row_bytes, stream)
        self.copy(received.topk, topk_idx, 8 * topk * tokens, stream)
        self.copy(received.weights, topk_weights, 4 * topk * tokens, stream)

    def combine(self, x, rows, hidden, topk_weights, topk, positions, prefix, tokens, out, out_weights, bias_0, bias_1,
                num_sms, stream):  # fmt: skip
        self.copy(out, x, 2 * hidden * tokens, stream)
        return []

    def close(self):
        pass


class Alone:
    def Get_rank(self):
        return 0

    def Get_size(self):
        return 1

    def allgather(self, value):
        return [value]

    def Barrier(self):
        pass


@pytest.fixture
def buffer(monkeypatch):
    monkeypatch.setattr(engines, "import_module", lambda name: SimpleNamespace(connect=Copies))
    return Buffer(None, 1 << 20, explicitly_destroy=False, comm=Alone())


def arguments(**further):
    made = {
        "num_tokens_per_rank": torch.full((1,), TOKENS, dtype=torch.int32, device="cuda"),
        "is_token_in_rank": torch.ones(TOKENS, 1, dtype=torch.bool, device="cuda"),
        "num_tokens_per_expert": torch.full((1,), TOKENS, dtype=torch.int32, device="cuda"),
        "topk_idx": torch.zeros(TOKENS, 1, dtype=torch.int64, device="cuda"),
        "topk_weights": torch.ones(TOKENS, 1, device="cuda"),
    }
    return made | further


def test_the_communication_stream_waits_for_the_caller(buffer):
    given = arguments()
    for value in range(4):
        x = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, device="cuda")
        torch.cuda._sleep(LONG)
        x.fill_(value)
        recv_x, *_, handle, _ = buffer.dispatch(x, **given)
        combined, _, _ = buffer.combine(recv_x + 1, handle)
        del x, recv_x
        assert (combined + 1).eq(value + 2).all()
    assert buffer.get_comm_stream().priority < 0


def test_an_event_instead_of_a_wait(buffer):
    given = arguments()
    x = torch.full((TOKENS, HIDDEN), 3, dtype=torch.bfloat16, device="cuda")
    before = buffer.capture()
    torch.cuda._sleep(LONG)
    with torch.cuda.stream(buffer.get_comm_stream()):
        torch.cuda._sleep(LONG)
    recv_x, *_, event = buffer.dispatch(x, **given, previous_event=before, async_finish=True,
                                        allocate_on_comm_stream=True)  # fmt: skip
    assert isinstance(event, EventOverlap) and not event.event.event.query()
    event.current_stream_wait()
    assert recv_x.eq(3).all() and event.event.event.query()


def test_memory_goes_back_after_use(buffer):
    given, engine = arguments(), buffer.runtime
    x = torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16, device="cuda")
    for _ in range(5):
        recv_x, *_ = buffer.dispatch(x, **given)
        torch.cuda._sleep(LONG // 10)
        assert recv_x.sum() == TOKENS * HIDDEN
        del recv_x, _
        gc.collect()
    # The last one goes back with the next call.
    assert engine.returned == 4


def test_a_graph_replays_dispatch_and_combine(buffer):
    given = arguments(num_worst_tokens=TOKENS)
    x = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16, device="cuda")
    buffer.dispatch(x, **given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recv_x, *_, handle, _ = buffer.dispatch(x, **given)
        combined, _, _ = buffer.combine(recv_x, handle)
    del recv_x, handle
    gc.collect()
    for value in (1, 2, 3):
        x.fill_(value)
        buffer.dispatch(torch.zeros_like(x), **given)  # would get the graph's block, had it gone back
        graph.replay()
        assert combined.eq(value).all()
