"""The rank program of `bench scale` on CPU tensors and an engine made of NumPy: right is right, and wrong is told.

A rank is a thread; what it asks of torch's CUDA is answered on the CPU. Times are not what is tested here.
"""

import argparse
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from deepep_rig import Cpu, Meeting, torch
from numpy_engine import BF16, NumpyEngine, view

from rdmakit.cli import bench_scale_rank
from rdmakit.cli.bench_rank import BenchRank
from rdmakit.cli.bench_scale_plan import Case
from rdmakit.ep import tensors
from rdmakit.ep.engine import RECEIVE, SEND

HIDDEN = 256
PLAN = [
    Case("normal", 40, "uniform"), Case("ll", 12, "fixed"), Case("normal", 56, "recorded"), Case("ll", 12, "recorded"),
]  # fmt: skip


class OnCpu:
    """torch, whose CUDA is the CPU."""

    cuda = SimpleNamespace(synchronize=lambda: None, get_device_name=lambda: "a CPU", stream=lambda s: nullcontext())

    def __getattr__(self, name):
        found = getattr(torch, name)
        if name not in ("full", "randn", "randint", "rand", "Generator"):
            return found
        return lambda *args, **given: found(*args, **given | ({"device": "cpu"} if "device" in given else {}))

    def device(self, name):
        return torch.device("cpu")


class Engine(NumpyEngine):
    """With what the benchmark asks beyond the rig's; `break_` spoils what a call has given."""

    break_ = None

    def barrier(self, stream):
        self.exchange(None)

    def receive_block(self, rows, row_bytes, scale_bytes, topk, stream=0):
        block = super().receive_block(rows, row_bytes, scale_bytes, topk, stream)
        block.address, block.nbytes, block.rows = block.x, rows * row_bytes, rows
        return block

    def spoil(self, what, address, nbytes=1):
        if self.break_ == what and self.rank == self.ranks - 1:
            view(address, np.uint8, nbytes)[nbytes // 2] ^= 0x41

    def notify(self, *args):
        super().notify(*args)
        if self.break_ == "counts" and self.rank == 0:
            self._counts = self._counts[0] + 1, self._counts[1]

    def dispatch(self, *args):
        super().dispatch(*args)
        row_bytes, scale_bytes, to, rows = args[1], args[3], args[11], args[12]
        self.spoil("fp8 rows" if scale_bytes else "rows", to.x, rows * row_bytes)
        self.spoil("choices", to.topk, rows * 64)
        self.spoil("source", to.source, rows * 4)
        if scale_bytes:
            self.spoil("scales", to.scales, rows * scale_bytes)

    def combine(self, *args):
        kept = super().combine(*args)
        self.spoil("sums", args[8], 2 * HIDDEN * args[7])
        self.spoil("weights", args[9], 32 * args[7])
        return kept

    def ll_configure(self, max_tokens, hidden, experts, topk, stream=0):
        super().ll_configure(max_tokens, hidden, experts, topk)

    def ll_dispatch(self, *args, stream):
        super().ll_dispatch(*args, 0, 0, SEND | RECEIVE, stream)
        self.spoil("ll counts", args[8], 4)
        if args[3]:
            view(args[6], np.uint8, self.local, self.rows, HIDDEN)[:, 0, 7] ^= np.uint8(self.break_ == "ll rows")
            scales = view(args[7], np.float32, self.local, HIDDEN // 128, self.rows)
            scales[:, 0, 0] += np.float32(self.break_ == "ll scales")

    def ll_combine(self, *args, stream):
        super().ll_combine(*args, 0, SEND | RECEIVE, stream)
        if self.break_ == "ll sums":
            out = view(args[5], BF16, args[4], HIDDEN)
            out[0] = (out[0].astype(np.float32) * 1.02).astype(BF16)


class Stand(bench_scale_rank.ScaleRank):
    """Calls each operation as often as the benchmark would, at least once, and times none."""

    def put(self, array):
        raw = np.ascontiguousarray(array)
        known = raw.dtype in (np.int64, np.int32, np.float32, np.bool_)
        return torch.from_numpy((raw if known else raw.view(np.uint8)).copy())

    def wait(self):
        pass

    def gpu_us(self, operation, iterations=0):
        operation()
        return 100.0

    wall_us = graph_us = gpu_us

    def peers(self, block):
        return {"peer_copy_gbs": 300.0}


def joined(self, args):
    """BenchRank.__init__ for a thread."""
    meeting, rank = args.meeting, args.rank
    self.args, self.torch, self.rank, self.ranks, self.stream, self.at = args, OnCpu(), rank, meeting.ranks, None, 1
    self.engine = Engine(meeting, rank, 1 << 10)
    self.engine.break_ = args.break_
    self.link = SimpleNamespace(blocks=24, heaps=[0] * meeting.ranks)
    self.group = SimpleNamespace(all_gather=lambda value: meeting.exchange(rank, value))

    def all_to_all_single(came, send):
        parts = meeting.exchange(rank, send.clone().chunk(meeting.ranks))
        came.copy_(torch.cat([part[rank] for part in parts]))

    self.dist = SimpleNamespace(all_to_all_single=all_to_all_single)
    self.figures, self.floors, self.wrong, self.sms = {}, {}, [], {}


@pytest.fixture
def measure(monkeypatch, tmp_path, seed):
    """Run the program; what rank 0 wrote."""
    monkeypatch.setattr(BenchRank, "__init__", joined)
    monkeypatch.setattr(bench_scale_rank, "cases", lambda: PLAN)
    monkeypatch.setattr(tensors, "backend", lambda: Cpu())

    def run(ranks, break_=None, seconds=1000.0):
        meeting = Meeting(ranks)

        def one(rank):
            try:
                args = argparse.Namespace(meeting=meeting, rank=rank, break_=break_, tokens=56, hidden=HIDDEN,
                                          seed=seed % 1000, out=tmp_path / "out.json",
                                          until=time.time() + seconds)  # fmt: skip
                Stand(args).everything()
            except threading.BrokenBarrierError:
                raise
            except BaseException:
                meeting.abort()
                raise

        with ThreadPoolExecutor(ranks) as pool:
            pending = [pool.submit(one, rank) for rank in range(ranks)]
            failures = [error for error in (p.exception() for p in pending) if error is not None]
        for error in sorted(failures, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return json.loads((tmp_path / "out.json").read_text())

    return run


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_case_of_any_number_of_ranks_is_right(measure, ranks):
    found = measure(ranks)
    assert found["wrong"] == [] and found["left_out"] == [] and all(row["right"] for row in found["rows"])
    seen = {(row["operation"], row["tokens"], row["routing"], row["sms"]) for row in found["rows"]}
    for operation in ("fp8_dispatch", "bf16_dispatch", "bf16_combine"):
        assert {(operation, 40, "uniform", 24), (operation, 56, "recorded", 12)} <= seen
    assert {("ll_dispatch", 12, "fixed", 24), ("ll_combine", 12, "recorded", 24)} <= seen
    assert ("nccl_a2a_permuted", 56, "recorded", None) in seen
    fixed = [row for row in found["rows"] if row["routing"] == "fixed" and row["operation"] == "ll_dispatch"]
    assert [row["wire"] for row in fixed] == [12 * (HIDDEN + HIDDEN // 32) * (ranks > 1)]


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        ("rows", "bf16_dispatch/24: rows on rank 1"), ("fp8 rows", "fp8_dispatch/12: rows on rank 1"),
        ("scales", "fp8_dispatch/24: scales on rank 1"), ("choices", "bf16_dispatch/24: choices on rank 1"),
        ("source", "bf16_dispatch/24: sources on rank 1"), ("sums", "bf16_combine/24: rows on rank 1"),
        ("weights", "bf16_combine/24: weights on rank 1"), ("ll counts", "ll_dispatch: counts on rank 1"),
        ("ll rows", "ll_dispatch: rows on rank 0"), ("ll scales", "ll_dispatch: scales on rank 1"),
        ("ll sums", "ll_combine: sums on rank 0"), ("counts", "counts on rank 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_its_row_is_not_right(measure, break_, said):
    found = measure(2, break_)
    assert any(said in text for text in found["wrong"]), found["wrong"]
    name = said.partition("/")[0].partition(":")[0]
    rows = [row for row in found["rows"] if row["operation"] == name]
    assert break_ == "counts" or any(not row["right"] for row in rows)


def test_without_time_nothing_is_begun_and_all_is_left_out(measure):
    found = measure(2, seconds=-1.0)
    assert found["rows"] == [] and len(found["left_out"]) == len(PLAN)
