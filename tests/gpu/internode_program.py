"""Buffer between hosts, in the manner of DeepEP's test_internode.py: correctness against torch, then times.

One machine with two GPUs plays two hosts of one GPU:

    RDMAKIT_RANKS_PER_HOST=1 torchrun --standalone --nproc-per-node 2 tests/gpu/internode_program.py

Every rank makes the inputs of all ranks from the seed, so each knows what it must receive, bit for bit. Exit status 0,
and "all right" from rank 0, when all of it is so. tests/any/test_deepep_internode.py runs its checks with no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from rdmakit.ep import Buffer, Config
from rdmakit.ep.rendezvous import RANKS_PER_HOST

FP8_MOST = 448.0


@dataclass
class Tokens:
    """One rank's inputs, on the CPU."""

    x: torch.Tensor
    fp8: tuple[torch.Tensor, torch.Tensor]
    idx: torch.Tensor
    weights: torch.Tensor


def make_tokens(options: argparse.Namespace, rank: int) -> Tokens:
    """From the seed and the rank; ranks have different numbers of tokens, and one choice in ten is masked."""
    generator = torch.Generator().manual_seed(options.seed * 1000 + rank)
    count = options.tokens - rank % 3
    x = torch.randn(count, options.hidden, generator=generator).bfloat16()
    idx = torch.rand(count, options.experts, generator=generator).topk(options.topk, dim=1).indices
    masked = torch.rand(idx.shape, generator=generator) < 0.1
    weights = torch.rand(idx.shape, generator=generator).masked_fill(masked, 0)
    blocks = x.float().view(count, -1, 128)
    scales = blocks.abs().amax(2).clamp(1e-4) / FP8_MOST
    rows = (blocks / scales[..., None]).to(torch.float8_e4m3fn).view(count, -1)
    return Tokens(x, (rows, scales), idx.masked_fill(masked, -1), weights)


class Truth:
    """What each rank must receive and get back."""

    def __init__(self, options: argparse.Namespace, ranks: int, per_host: int) -> None:
        self.options, self.ranks, self.per_host = options, ranks, per_host
        self.local = options.experts // ranks
        self.tokens = [make_tokens(options, rank) for rank in range(ranks)]
        self.goes = [torch.stack([self._here(t.idx, rank).any(1) for rank in range(ranks)], 1) for t in self.tokens]

    def _here(self, idx: torch.Tensor, rank: int) -> torch.Tensor:
        return (idx >= rank * self.local) & (idx < (rank + 1) * self.local)

    def received(self, rank: int, what: Any) -> torch.Tensor:
        """`what(tokens)` of all tokens that go to a rank, by source and token."""
        return torch.cat([what(t)[goes[:, rank]] for t, goes in zip(self.tokens, self.goes, strict=True)])

    def choices(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Local experts or -1, and weights or 0."""
        idx, weights = self.received(rank, lambda t: t.idx), self.received(rank, lambda t: t.weights)
        here = self._here(idx, rank)
        return torch.where(here, idx - rank * self.local, -1), torch.where(here, weights, 0)

    def expert(self, rows: torch.Tensor, rank: int) -> torch.Tensor:
        """What a rank makes of its rows, in BF16."""
        return (rows.float() * (1 + rank / 8)).bfloat16()

    def combined(self, rank: int, rows: torch.Tensor, biases: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Rows of a token added up: each host's by ascending rank and rounded, hosts, biases; rounded."""
        total = torch.zeros(rows.shape)
        for first in range(0, self.ranks, self.per_host):
            part = torch.zeros(rows.shape)
            for other in range(first, first + self.per_host):
                part += torch.where(self.goes[rank][:, other, None], self.expert(rows, other).float(), 0)
            total += part.bfloat16().float()
        for bias in biases:
            total += bias.float()
        return total.bfloat16()


def widen(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """FP8 with its scales as BF16."""
    return (rows.float().view(len(rows), -1, 128) * scales[..., None]).view(len(rows), -1).bfloat16()


def other(rows: torch.Tensor) -> torch.Tensor:
    """Other rows, for a route that is used again: if they did not come, it shows."""
    raw = rows.view(torch.uint8) if rows.element_size() == 1 else rows
    return raw.flip(0).view(rows.dtype)


def equal(what: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit for bit."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (what, found.dtype, found.shape, wanted.shape)
    raw = torch.uint8 if found.dtype == torch.float8_e4m3fn else None
    a, b = (each.cpu().view(raw) if raw else each.cpu() for each in (found, wanted))
    if not torch.equal(a, b):
        rows = (a != b).view(len(a), -1).any(1).nonzero().flatten()
        raise AssertionError(f"{what}: {len(rows)} of {len(a)} rows differ, the first is {int(rows[0])}")


def check_layout(buffer: Buffer, truth: Truth, rank: int, idx: torch.Tensor) -> dict[str, torch.Tensor]:
    """get_dispatch_layout; what dispatch takes of it."""
    per_rank, per_host, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, truth.options.experts)
    goes = truth.goes[rank]
    equal("is_token_in_rank", in_rank, goes)
    equal("num_tokens_per_rank", per_rank, goes.sum(0).int())
    equal("num_tokens_per_rdma_rank", per_host, goes.view(len(goes), -1, truth.per_host).any(2).sum(0).int())
    chosen = truth.tokens[rank].idx
    equal("num_tokens_per_expert", per_expert, chosen[chosen >= 0].bincount(minlength=truth.options.experts).int())
    return {"num_tokens_per_rank": per_rank, "num_tokens_per_rdma_rank": per_host, "is_token_in_rank": in_rank,
            "num_tokens_per_expert": per_expert}  # fmt: skip


def check_round_trip(
    buffer: Buffer, truth: Truth, rank: int, *, fp8: bool, topk: bool, asynchronous: bool, previous: bool
) -> None:
    """dispatch, one of other rows with its handle, combine with biases and weights."""
    mine, config = truth.tokens[rank], Config(truth.options.sms)
    idx = mine.idx.cuda()
    layout = check_layout(buffer, truth, rank, idx)
    x = (mine.fp8[0].cuda(), mine.fp8[1].T.contiguous().T.cuda()) if fp8 else mine.x.cuda()

    def call(function: Any, **arguments: Any) -> Any:
        if previous:
            arguments["previous_event"] = buffer.capture()
        *results, event = function(**arguments, config=config, async_finish=asynchronous)
        if asynchronous:
            event.current_stream_wait()
        return results

    chosen = {"topk_idx": idx, "topk_weights": mine.weights.cuda()} if topk else {}
    recv_x, recv_idx, recv_weights, counts, handle = call(buffer.dispatch, x=x, **layout, **chosen)
    others = tuple(other(part).cuda() for part in mine.fp8) if fp8 else other(mine.x).cuda()
    again = call(buffer.dispatch, x=others, handle=handle)[0]
    local_idx, local_weights = truth.choices(rank)
    for found, which in ((recv_x, lambda rows: rows), (again, other)):
        if fp8:
            equal("rows", found[0], truth.received(rank, lambda t, which=which: which(t.fp8[0])))
            equal("scales", found[1], truth.received(rank, lambda t, which=which: which(t.fp8[1])))
        else:
            equal("rows", found, truth.received(rank, lambda t, which=which: which(t.x)))
    assert counts == [int((local_idx == expert).sum()) for expert in range(truth.local)], counts
    prefix = torch.stack([goes[:, rank].sum() for goes in truth.goes]).cumsum(0).int()
    equal("recv_gbl_rank_prefix_sum", handle[-4], prefix)
    if topk:
        equal("recv_topk_idx", recv_idx, local_idx)
        equal("recv_topk_weights", recv_weights, local_weights)

    rows = widen(*recv_x) if fp8 else recv_x
    biases = tuple(torch.full_like(mine.x, value) for value in (0.5, -2.0))
    given = {"bias": tuple(bias.cuda() for bias in biases)} | ({"topk_weights": recv_weights} if topk else {})
    out, out_weights = call(buffer.combine, x=truth.expert(rows, rank), handle=handle, **given)
    equal("sums", out, truth.combined(rank, widen(*mine.fp8) if fp8 else mine.x, biases))
    if topk:
        equal("summed weights", out_weights, mine.weights)


def time_us(function: Any, turns: int = 20) -> float:
    """Median of GPU times between two events on the current stream."""
    spent = []
    for _ in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        spent.append(1e3 * begin.elapsed_time(end))
    return sorted(spent)[turns // 2]


def show_times(buffer: Buffer, truth: Truth, rank: int) -> None:
    """Of cached dispatch and of combine: times of a test's HCA, not of a NIC."""
    mine, config = truth.tokens[rank], Config(truth.options.sms)
    layout = check_layout(buffer, truth, rank, mine.idx.cuda())
    for name, x in (("BF16", mine.x.cuda()), ("FP8", tuple(part.cuda() for part in mine.fp8))):
        handle = buffer.dispatch(x, **layout, config=config)[4]
        spent = time_us(lambda x=x, handle=handle: buffer.dispatch(x, handle=handle, config=config))
        if rank == 0:
            print(f"{name} dispatch, cached: {spent:.0f} us", flush=True)
    rows = buffer.dispatch(mine.x.cuda(), handle=handle, config=config)[0].clone()
    spent = time_us(lambda: buffer.combine(rows, handle, config=config))
    if rank == 0:
        print(f"BF16 combine: {spent:.0f} us", flush=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"tokens": 4096, "hidden": 7168, "experts": 256, "topk": 8, "sms": 24, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    per_host = int(os.environ.get(RANKS_PER_HOST, "1"))
    os.environ[RANKS_PER_HOST] = str(per_host)
    truth, config = Truth(options, ranks, per_host), Config(options.sms)
    buffer = Buffer(
        dist.group.WORLD, config.get_nvl_buffer_size_hint(2 * options.hidden, ranks),
        config.get_rdma_buffer_size_hint(2 * options.hidden, ranks), explicitly_destroy=True,
    )  # fmt: skip
    if rank == 0:
        print(f"{buffer.runtime!r}; seed {options.seed}", flush=True)
    for fp8, topk, asynchronous, previous in itertools.product((False, True), repeat=4):
        modes = {"fp8": fp8, "topk": topk, "asynchronous": asynchronous, "previous": previous}
        check_round_trip(buffer, truth, rank, **modes)
        if rank == 0:
            print("right: " + ", ".join(name if value else f"no {name}" for name, value in modes.items()), flush=True)
    show_times(buffer, truth, rank)
    dist.barrier()
    buffer.destroy()
    if rank == 0:
        print("all right", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
