"""One rank of `rdmakit bench scale`: checks and times the plan's cases, until its time is up.

Leans on bench_rank, bench_a2a, bench_scale_plan, bench_scale_truth; run by torchrun. Rows of every rank come from
seeds, on each GPU; rank 0 writes what has been found after each case, so that a run that is ended keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.cli import bench_scale_truth as truth
from rdmakit.cli.bench_a2a import all_to_all
from rdmakit.cli.bench_rank import BenchRank
from rdmakit.cli.bench_scale_plan import SMS, TOPK, Case, busiest, cases, routing
from rdmakit.cli.bench_scale_truth import Numbers
from rdmakit.device.handle import WATCH
from rdmakit.ep import reference, tensors
from rdmakit.ep.routing import uniform

__all__ = ["ScaleRank", "main"]

_COPY_EACH = 2 << 20  # bytes that a SM copies


class ScaleRank(BenchRank):
    """What `BenchRank` is, with inputs for all cases."""

    iterations, calls = 20, 20

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        torch, tokens, hidden = self.torch, args.tokens, args.hidden
        self.numbers = Numbers(lambda a: a.float(), lambda a: a.to(torch.bfloat16))
        x, x8, scales = [], [], []
        for rank in range(self.ranks):
            seeded = torch.Generator(device="cuda").manual_seed(1009 * args.seed + rank)
            x.append(torch.randn(tokens, hidden, device="cuda", generator=seeded).to(torch.bfloat16))
            x8.append(torch.randint(0, 256, (tokens, hidden), device="cuda", generator=seeded, dtype=torch.uint8))
            scales.append(torch.rand(tokens, hidden // 128, device="cuda", generator=seeded))
        self.x, self.x8, self.scales = torch.stack(x), torch.stack(x8), torch.stack(scales)
        self.peer: dict[str, float] = {}
        torch.cuda.synchronize()

    def bits(self, rows: Any) -> Any:
        return rows.view(self.torch.uint8)

    def same(self, name: str, what: str, got: Any, want: Any) -> None:
        """Bit for bit, on the GPU."""
        if not self.torch.equal(self.bits(got.contiguous()), self.bits(want.contiguous())):
            self.wrong.append(f"{name}: {what} on rank {self.rank}")

    def there(self, address: int, nbytes: int) -> Any:
        return tensors.backend().bytes_at(address, nbytes, self.torch.device("cuda"), None)

    def prove(self) -> None:
        """That torch here rounds as the reference does: a small case of all ranks, whole, in NumPy."""
        tokens, hidden, experts = min(64, self.args.tokens), min(256, self.args.hidden), 8 * self.ranks
        parts = [uniform(tokens, experts, TOPK // 2, seed=self.args.seed + r) for r in range(self.ranks)]
        idx, weights = [p.topk_idx for p in parts], [p.topk_weights for p in parts]
        small = self.x[:, :tokens, :hidden].contiguous()
        x = [self.numpy(small[r]) for r in range(self.ranks)]
        wants = [reference.dispatch(x, idx, weights, r, experts) for r in range(self.ranks)]
        handles, by_rank = [want.handle for want in wants], truth.factors(self.ranks)
        mine = handles[self.rank]
        rows = small[self.put(mine.src_rank).long(), self.put(mine.src_token).long()]
        self.check("truth", "rows", self.bits(rows).cpu(), np.asarray(wants[self.rank].recv_x).view(np.uint8))
        y = [truth.scaled(np.asarray(want.recv_x), by_rank[r], truth.NUMPY) for r, want in enumerate(wants)]
        want, _ = reference.combine(y, handles, self.rank, tokens)
        goes = self.goes(idx, experts)[self.rank]
        got = truth.combined(small[self.rank], self.put(goes.astype(np.float32)), by_rank.tolist(), self.numbers)
        self.check("truth", "sums", self.numpy(got).view(np.uint16), want.view(np.uint16))

    def numpy(self, rows: Any) -> Any:
        """BF16 on the GPU as a NumPy array."""
        return self.bits(rows.contiguous()).cpu().numpy().view(ml_dtypes.bfloat16)

    def goes(self, idx: Sequence[Any], experts: int) -> list[Any]:
        each = experts // self.ranks
        return [np.stack([(choices // each == d).any(1) for d in range(self.ranks)], 1) for choices in idx]

    def choices(self, case: Case) -> tuple[list[Any], list[Any]]:
        """Of every rank, each told by itself."""
        mine = routing(case, self.rank, self.ranks, self.args.seed)
        told = self.group.all_gather((mine.topk_idx, mine.topk_weights))
        return [idx for idx, _ in told], [weights for _, weights in told]

    # ---- cases
    def normal(self, case: Case) -> None:
        """Dispatch of BF16 and FP8 and combine at each number of SMs; then NCCL's exchange."""
        torch, engine, rank, ranks, at = self.torch, self.engine, self.rank, self.ranks, self.at
        tokens, hidden, experts = case.tokens, self.args.hidden, case.experts
        idx, weights = self.choices(case)
        want = truth.placed(idx, weights, rank, experts)
        goes = self.goes(idx, experts)
        from_rank, from_token = self.put(want.handle.src_rank).long(), self.put(want.handle.src_token).long()
        given, given8 = self.x[rank, :tokens].contiguous(), self.x8[rank, :tokens].contiguous()
        scales = self.scales[rank, :tokens].contiguous()
        choices, values = self.put(idx[rank]), self.put(weights[rank])
        per_rank, per_expert = self.poisoned(ranks, dtype="int32"), self.poisoned(experts, dtype="int32")
        is_in_rank, positions = self.poisoned(tokens, ranks, dtype="bool"), self.poisoned(tokens, ranks, dtype="int32")
        prefix = self.poisoned(ranks, ranks, dtype="int32")
        out, sums = self.poisoned(tokens, hidden, dtype="bfloat16"), self.poisoned(tokens, TOPK, dtype="float32")

        def counts() -> None:
            engine.layout(choices.data_ptr(), tokens, TOPK, experts, per_rank.data_ptr(), per_expert.data_ptr(),
                          is_in_rank.data_ptr(), at)  # fmt: skip
            engine.notify(is_in_rank.data_ptr(), tokens, per_rank.data_ptr(), per_expert.data_ptr(), experts, 1,
                          positions.data_ptr(), prefix.data_ptr(), at)  # fmt: skip

        counts()
        rows, each = engine.counts()
        self.check(case.name, "counts", [rows, *each], [len(from_rank), *want.num_recv_tokens_per_expert])
        if not all(self.group.all_gather(rows == len(from_rank))):
            return  # nothing that follows could be right, and a rank alone would wait for the others
        block = engine.receive_block(rows, 2 * hidden, 0, TOPK)
        block8 = engine.receive_block(rows, hidden, hidden // 32, TOPK)

        def send(x: Any, row_bytes: int, scale: int, scale_bytes: int, to: Any, sms: int) -> None:
            engine.dispatch(x.data_ptr(), row_bytes, scale, scale_bytes, choices.data_ptr(), values.data_ptr(), TOPK,
                            experts, tokens, positions.data_ptr(), prefix.data_ptr(), to, rows, sms, at)  # fmt: skip

        dispatch = partial(send, given, 2 * hidden, 0, 0, block)
        dispatch8 = partial(send, given8, hidden, scales.data_ptr(), hidden // 32, block8)

        def combine(sms: int) -> None:
            engine.combine(block.x, rows, hidden, block.weights, TOPK, positions.data_ptr(), prefix.data_ptr(), tokens,
                           out.data_ptr(), sums.data_ptr(), 0, 0, sms, at)  # fmt: skip

        by_rank = truth.factors(ranks).tolist()
        went = self.put(goes[rank].astype(np.float32))
        total = truth.combined(given, went, by_rank, self.numbers)

        def check(sms: int) -> None:
            for received in (block, block8):
                self.poison(received.address, received.nbytes)
            for tensor in (out, sums):
                self.poison(tensor.data_ptr(), tensor.nbytes)
            engine.barrier(at)  # nobody writes into what is still being poisoned
            dispatch(sms)
            dispatch8(sms)
            self.wait()
            name, name8 = f"bf16_dispatch/{sms}", f"fp8_dispatch/{sms}"
            for label, received in ((name, block), (name8, block8)):
                found = self.view(received.topk, (rows, TOPK), np.int64)
                self.check(label, "choices", found, want.recv_topk_idx)
                found = self.view(received.weights, (rows, TOPK), np.float32)
                self.check(label, "weights", found, want.recv_topk_weights)
                self.check(label, "sources", self.view(received.source, (rows,), np.int32), want.handle.src_token)
            flat = self.there(block.x, 2 * rows * hidden)
            self.same(name, "rows", flat, self.bits(self.x[from_rank, from_token]).reshape(-1))
            self.same(name8, "rows", self.there(block8.x, rows * hidden), self.x8[from_rank, from_token].reshape(-1))
            flat8 = self.there(block8.scales, rows * hidden // 32)
            self.same(name8, "scales", flat8, self.bits(self.scales[from_rank, from_token]).reshape(-1))
            # Experts that differ by rank: a row taken from another rank's place shows in the sum.
            y = flat.view(torch.bfloat16)
            y.copy_(truth.scaled(y, by_rank[rank], self.numbers))
            combine(sms)
            self.wait()
            self.same(f"bf16_combine/{sms}", "rows", out, total)
            self.check(f"bf16_combine/{sms}", "weights", sums.cpu().numpy(), weights[rank])

        away, both = busiest(goes)
        meta = 12 * TOPK + 4
        sizes = {"fp8_dispatch": hidden + meta + hidden // 32, "bf16_dispatch": 2 * hidden + meta}
        for sms in SMS:
            if sms > self.link.blocks:
                continue
            check(sms)
            for name, operation in (("fp8_dispatch", dispatch8), ("bf16_dispatch", dispatch)):
                whole, size = partial(_one_after_another, counts, partial(operation, sms)), sizes[name]
                self.time(f"{name}/{sms}", whole, away * size, both * size, sms)
            size = 2 * hidden + 4 * TOPK
            self.time(f"bf16_combine/{sms}", partial(combine, sms), away * size, both * size, sms)
        if not self.peer:
            self.peer = self.peers(block)

        def right(found: Any) -> bool:
            return bool(torch.equal(self.bits(found), self.bits(self.x[from_rank, from_token])))

        all_to_all(self, "nccl_a2a", given, goes, right)

    def peers(self, block: Any) -> dict[str, float]:
        """GB/s to the next rank, all ranks at once: the driver's copy, and bulk copies by SMs."""
        from rdmakit.gpu.module import stock_kernel

        found = {"peer_copy_gbs": self.peer_copy(block)}
        watch = np.zeros((), WATCH)
        watch["report"] = self.link.report.address
        kernel = stock_kernel("copy_rate")
        most = _COPY_EACH * max(SMS)
        room = self.engine.receive_block(1, most, 0, 0)
        # It lies behind what each rank has received, elsewhere on each.
        places = self.group.all_gather(room.x - self.link.heaps[self.rank])
        following = (self.rank + 1) % self.ranks
        to = self.link.heaps[following] + places[following]
        source = self.x8[self.rank].reshape(-1)[:most].contiguous()
        sizes = [sms for sms in SMS if sms <= self.link.blocks and sms * _COPY_EACH <= source.nbytes]
        self.poison(room.x, most)
        self.wait()
        self.group.barrier()
        for sms in sizes:
            packed, kept = kernel.packed((to, source.data_ptr(), _COPY_EACH, 7168, 1, watch[()]))
            call = partial(kernel.launch, sms, 128, packed, shared_mem=4 * 4 * 7168, stream=self.at)
            us = self.gpu_us(call, 10)
            del kept
            found[f"sm_push_{sms}sm_gbs"] = sms * _COPY_EACH / us / 1e3
        self.group.barrier()
        came = max(sizes, default=0) * _COPY_EACH
        self.same("sm_push", "bytes", self.there(room.x, came), self.x8[self.rank - 1].reshape(-1)[:came])
        return found

    def ll(self, case: Case) -> None:
        """FP8 out, BF16 back, both halves in one launch each."""
        torch, engine, rank, ranks, at = self.torch, self.engine, self.rank, self.ranks, self.at
        tokens, hidden, experts = case.tokens, self.args.hidden, case.experts
        local, rows = experts // ranks, ranks * tokens
        idx, weights = self.choices(case)
        want, (expert, place, from_rank, from_token) = truth.ll_places(idx, rank, experts, tokens)
        cast, want_scales = reference.quantize_fp8(self.numpy(self.x[:, :tokens]))
        given = self.x[rank, :tokens].contiguous()
        choices, values = self.put(idx[rank]), self.put(weights[rank])
        out = self.poisoned(local, rows, hidden, dtype="uint8")
        scales = self.poisoned(local, hidden // 128, rows, dtype="float32")
        y, home = self.poisoned(local, rows, hidden, dtype="bfloat16"), self.poisoned(tokens, hidden, dtype="bfloat16")
        count, source = self.poisoned(local, dtype="int32"), self.poisoned(local, rows, dtype="int32")
        ranges, row_map = self.poisoned(local, ranks, dtype="int64"), self.poisoned(ranks, tokens, TOPK, dtype="int32")
        engine.ll_configure(tokens, hidden, experts, TOPK, at)

        def dispatch(fp8: bool = True) -> None:
            engine.ll_dispatch(given.data_ptr(), choices.data_ptr(), tokens, fp8, False, False,
                               (out if fp8 else y).data_ptr(), scales.data_ptr(), count.data_ptr(), source.data_ptr(),
                               ranges.data_ptr(), row_map.data_ptr(), stream=at)  # fmt: skip

        def combine() -> None:
            engine.ll_combine(y.data_ptr(), choices.data_ptr(), values.data_ptr(), row_map.data_ptr(), tokens,
                              home.data_ptr(), stream=at)  # fmt: skip

        dispatch()
        self.wait()
        self.check("ll_dispatch", "counts", count.cpu().numpy(), want.packed_recv_count)
        self.check("ll_dispatch", "ranges", ranges.cpu().numpy(), want.packed_recv_layout_range)
        self.check("ll_dispatch", "sources", source.cpu().numpy()[expert, place], from_token)
        at_expert, at_place = self.put(expert), self.put(place)
        by_source = self.put(from_rank), self.put(from_token)
        self.same("ll_dispatch", "rows", out[at_expert, at_place], self.put(cast)[by_source])
        self.same("ll_dispatch", "scales", scales[at_expert, :, at_place], self.put(want_scales)[by_source])
        by_expert = truth.factors(experts)
        dispatch(False)
        self.wait()
        self.same("ll_combine", "rows that it is given", y[at_expert, at_place], self.x[by_source])
        mine = self.put(by_expert[rank * local : (rank + 1) * local])[:, None, None]
        y.copy_(truth.scaled(y, mine, self.numbers))
        combine()
        self.wait()
        total, bound = truth.ll_combined(self.numpy(given), idx[rank], weights[rank], by_expert)
        off = np.abs(self.numpy(home).astype(np.float64) - total)
        if not bool((off <= bound).all()):  # a NaN is no small difference
            self.wrong.append(f"ll_combine: sums on rank {rank}")
        goes = self.goes(idx, experts)
        away, _ = busiest(goes)
        slots = max(int((wanted >= 0).sum()) for wanted in idx)  # rows of experts
        sms, message = self.link.blocks, hidden + hidden // 32
        self.time("ll_dispatch", dispatch, away * message, slots * message, sms)
        self.time("ll_combine", combine, away * 2 * hidden, slots * 2 * hidden, sms)
        every = truth.placed(idx, weights, rank, experts).handle
        exchanged = self.x[self.put(every.src_rank).long(), self.put(every.src_token).long()]
        all_to_all(self, "nccl_a2a", given, goes, lambda found: torch.equal(self.bits(found), self.bits(exchanged)))

    # ---- results
    def rows(self, case: Case) -> tuple[list[dict[str, Any]], list[str]]:
        """What the last case found, and forget it."""
        wrong = sorted({text for texts in self.group.all_gather(self.wrong) for text in texts})
        whole = not any(text.startswith(f"{case.name}:") for text in wrong)
        found = []
        for name, sms in self.sms.items():
            figures, floor = self.figures, self.floors[name]
            found.append({
                "ranks": self.ranks, "operation": name.partition("/")[0], "kind": case.kind, "tokens": case.tokens,
                "routing": case.routing, "sms": sms, "us": figures[f"{name}_us"],
                "graph_us": figures.get(f"{name}_graph_us"), "call_us": figures.get(f"{name}_call_us"),
                "wire": floor["wire"], "logical": floor["logical"],
                "right": whole and not any(text.startswith(f"{name}:") for text in wrong),
            })  # fmt: skip
        self.figures, self.floors, self.sms, self.wrong = {}, {}, {}, []
        return found, [f"{self.ranks} ranks, {case.name}: {text}" for text in wrong]

    def everything(self) -> None:
        """The plan's cases while there is time; every rank goes by rank 0's clock."""
        begin, slowest = time.time(), 0.0
        result: dict[str, Any] = {
            "ranks": self.ranks, "device": self.torch.cuda.get_device_name(), "rows": [], "wrong": [], "left_out": [],
            "peer": {},
        }  # fmt: skip
        with self.torch.cuda.stream(self.stream):
            self.prove()
            proof = sorted({text for texts in self.group.all_gather(self.wrong) for text in texts})
            result["wrong"] += [f"{self.ranks} ranks: {text}" for text in proof]
            self.wrong = []
            plan = cases()
            for number, case in enumerate(plan):
                started = time.time()
                if not self.group.all_gather(started + 1.25 * slowest < self.args.until)[0]:
                    result["left_out"] = [f"{self.ranks} ranks, {left.name}: no time" for left in plan[number:]]
                    break
                (self.normal if case.kind == "normal" else self.ll)(case)
                rows, wrong = self.rows(case)
                slowest = max(slowest, time.time() - started)
                result["rows"] += rows
                result["wrong"] += wrong
                result["peer"] = self.peer
                result["seconds"] = time.time() - begin
                # A run that is ended before it says more has left the rest out.
                result["left_out"] = [f"{self.ranks} ranks, {left.name}: ended" for left in plan[number + 1 :]]
                self.keep(result)
        self.keep(result)

    def keep(self, result: dict[str, Any]) -> None:
        """Write it, whole or not at all."""
        if self.rank == 0:
            partial_file = self.args.out.with_suffix(".partial")
            partial_file.write_text(json.dumps(result))
            os.replace(partial_file, self.args.out)


def _one_after_another(*calls: Any) -> None:
    for call in calls:
        call()


def main() -> None:
    """Entry, under torchrun."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="by time.time()")
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.tokens = max(case.tokens for case in cases())
    args.ll_tokens = max(case.tokens for case in cases() if case.kind == "ll")
    bench = ScaleRank(args)
    bench.everything()
    bench.group.barrier()
    bench.engine.close()
    bench.dist.destroy_process_group()


if __name__ == "__main__":
    main()
