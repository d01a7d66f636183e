"""Buffers of several ranks in one process, on CPU tensors: a backend with no streams, over the engine made of NumPy.

A rank is a thread. Streams are names, and what is asked of them goes to `log`.
"""

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from numpy_engine import BF16, FP8, NumpyEngine

from rdmakit.ep import engine as engines
from rdmakit.ep import tensors
from rdmakit.ep.buffer import Buffer

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")

NUMPY = {torch.bfloat16: (torch.uint16, BF16), torch.float8_e4m3fn: (torch.uint8, FP8)}


def to_numpy(tensor):
    """A copy, with ml_dtypes for what NumPy has not."""
    raw, kind = NUMPY.get(tensor.dtype, (None, None))
    return tensor.clone().numpy() if raw is None else tensor.contiguous().view(raw).clone().numpy().view(kind)


def other_rows(x):
    """Other rows of each rank, for a dispatch that reuses a route: if it brings nothing, it shows."""
    return [tuple(part[::-1].copy() for part in rows) if isinstance(rows, tuple) else rows[::-1].copy() for rows in x]


def to_torch(array):
    """A tensor with a copy of an array."""
    array = np.ascontiguousarray(array)
    for kind, (raw, numpy_kind) in NUMPY.items():
        if array.dtype == numpy_kind:
            return torch.from_numpy(array.view(np.uint16 if raw == torch.uint16 else np.uint8).copy()).view(kind)
    return torch.from_numpy(array.copy())


class Cpu(tensors.Cuda):
    """Streams are names; a rank's thread has its own current one."""

    def __init__(self):
        self.kinds = tensors.Kinds()
        self.log = []
        self.in_graph = False
        self._here = threading.local()

    def direct(self):
        return nullcontext()

    def device(self):
        return torch.device("cpu")

    def capability(self):
        return 9, 0

    def reaches(self, other):
        return other == 0

    def synchronize(self):
        self.log.append(("synchronize",))

    def current_stream(self, where=None):
        return getattr(self._here, "stream", "caller")

    def new_stream(self):
        return "comm"

    def address(self, stream):
        return {"caller": 1, "comm": 2}[stream]

    @contextmanager
    def use(self, stream):
        before, self._here.stream = self.current_stream(), stream
        yield
        self._here.stream = before

    def record(self, stream=None):
        return f"event of {stream or self.current_stream()}"

    def wait_event(self, stream, event):
        self.log.append((stream, "waits for", event))

    def wait_stream(self, stream, other):
        if stream != other:
            self.log.append((stream, "waits for", other))

    def keep(self, tensor, stream):
        self.log.append((stream, "keeps", tuple(tensor.shape)))

    def capturing(self):
        return self.in_graph

    def empty(self, shape, kind, where):
        self.log.append((self.current_stream(), "allocates", tuple(shape)))
        return super().empty(shape, kind, where)

    def bytes_at(self, address, nbytes, where, owner):
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        memory.owner = owner
        return torch.frombuffer(memory, dtype=torch.uint8)


class Meeting:
    """Where threads exchange values."""

    def __init__(self, ranks):
        self.ranks = ranks
        self._values = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=60)

    def exchange(self, rank, value):
        self._values[rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def abort(self):
        self._barrier.abort()


class Comm:
    """The part of an mpi4py communicator that Buffer uses."""

    def __init__(self, meeting, rank):
        self.meeting, self.number = meeting, rank

    def Get_rank(self):
        return self.number

    def Get_size(self):
        return self.meeting.ranks

    def allgather(self, value):
        return self.meeting.exchange(self.number, value)

    def Barrier(self):
        self.meeting.exchange(self.number, None)


class Rig:
    """`ranks` Buffers over NumPy engines; `each(f)` calls f(buffer, rank), each in a thread, for a list of results."""

    def __init__(self, monkeypatch, ranks=2):
        self.ranks, self.cpu = ranks, Cpu()
        self._pool = ThreadPoolExecutor(ranks)
        monkeypatch.setattr(tensors, "backend", lambda: self.cpu)
        monkeypatch.setattr(engines, "import_module", lambda name: SimpleNamespace(connect=self._engine))

    def _engine(self, rendezvous, *, num_nvl_bytes, num_rdma_bytes, enable_shrink):
        return NumpyEngine(self.meeting, rendezvous.rank, num_nvl_bytes + num_rdma_bytes)

    def make(self, **arguments):
        """The Buffers, by rank; not those of an earlier call."""
        self.meeting = Meeting(self.ranks)
        self.buffers = self._run(lambda _, rank: Buffer(None, comm=Comm(self.meeting, rank), **arguments))
        return self.buffers

    def each(self, function):
        return self._run(function, self.buffers)

    def _run(self, function, buffers=None):
        def guarded(rank):
            try:
                return function(buffers[rank] if buffers else None, rank)
            except BaseException:
                self.meeting.abort()
                raise

        waiting = [self._pool.submit(guarded, rank) for rank in range(self.ranks)]
        errors = [error for error in (each.exception() for each in waiting) if error]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [each.result() for each in waiting]
