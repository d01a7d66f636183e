"""One rank of `rdmakit bench ep`: checks every operation against NumPy, then times it.

Leans on bench_rank, bench_a2a, ep.reference; run by torchrun.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.cli.bench_a2a import all_to_all
from rdmakit.cli.bench_ep_buffer import buffer_calls
from rdmakit.cli.bench_rank import BenchRank
from rdmakit.ep import reference

__all__ = ["main"]


class _Bench(BenchRank):
    # ---- inputs
    def inputs(self, tokens: int, experts: int) -> tuple[list[Any], list[Any], list[Any]]:
        """Of every rank, from one seed."""
        x, idx, weights = [], [], []
        for rank in range(self.ranks):
            rng = np.random.default_rng([self.args.seed, tokens, rank])
            x.append(rng.standard_normal((tokens, self.args.hidden), np.float32).astype(ml_dtypes.bfloat16))
            scores = rng.random((tokens, experts), np.float32)
            idx.append(np.argsort(scores, axis=1)[:, : self.args.topk].astype(np.int64))
            weights.append(rng.random((tokens, self.args.topk), np.float32))
        return x, idx, weights

    def came(self, x: list[Any], goes: list[Any], found: Any) -> bool:
        """Whether these are the rows that are for this rank, by source rank and token."""
        want = np.concatenate([rows[where[:, self.rank]] for rows, where in zip(x, goes, strict=True)])
        return np.array_equal(found.view(self.torch.uint8).cpu().numpy(), want.view(np.uint8))

    # ---- operations
    def normal(self) -> None:
        """Dispatch of BF16 and FP8, combine; the counts that come first are part of a dispatch's time."""
        args, engine, rank, ranks, at = self.args, self.engine, self.rank, self.ranks, self.at
        tokens, hidden, topk, experts = args.tokens, args.hidden, args.topk, args.experts
        x, idx, weights = self.inputs(tokens, experts)
        want = reference.dispatch(x, idx, weights, rank, experts)
        fp8 = [reference.quantize_fp8(rows) for rows in x]
        want8, want_scales = reference.dispatch_rows(fp8, want.handle)
        given, choices, values = self.put(x[rank]), self.put(idx[rank]), self.put(weights[rank])
        given8, scales = self.put(fp8[rank][0]), self.put(fp8[rank][1])
        per_rank, per_expert = self.poisoned(ranks, dtype="int32"), self.poisoned(experts, dtype="int32")
        is_in_rank, positions = self.poisoned(tokens, ranks, dtype="bool"), self.poisoned(tokens, ranks, dtype="int32")
        prefix = self.poisoned(ranks, ranks, dtype="int32")

        def counts() -> None:
            engine.layout(
                choices.data_ptr(),
                tokens,
                topk,
                experts,
                per_rank.data_ptr(),
                per_expert.data_ptr(),
                is_in_rank.data_ptr(),
                at,
            )
            engine.notify(
                is_in_rank.data_ptr(),
                tokens,
                per_rank.data_ptr(),
                per_expert.data_ptr(),
                experts,
                1,
                positions.data_ptr(),
                prefix.data_ptr(),
                at,
            )

        counts()
        rows, each = engine.counts()
        block, block8 = (
            engine.receive_block(rows, 2 * hidden, 0, topk),
            engine.receive_block(rows, hidden, hidden // 32, topk),
        )

        def dispatch(sms: int) -> None:
            engine.dispatch(
                given.data_ptr(),
                2 * hidden,
                0,
                0,
                choices.data_ptr(),
                values.data_ptr(),
                topk,
                experts,
                tokens,
                positions.data_ptr(),
                prefix.data_ptr(),
                block,
                rows,
                sms,
                at,
            )

        def dispatch8(sms: int) -> None:
            engine.dispatch(
                given8.data_ptr(),
                hidden,
                scales.data_ptr(),
                hidden // 32,
                choices.data_ptr(),
                values.data_ptr(),
                topk,
                experts,
                tokens,
                positions.data_ptr(),
                prefix.data_ptr(),
                block8,
                rows,
                sms,
                at,
            )

        out, sums = self.poisoned(tokens, 2 * hidden, dtype="uint8"), self.poisoned(tokens, topk, dtype="float32")

        def combine(sms: int) -> None:
            engine.combine(
                block.x,
                rows,
                hidden,
                block.weights,
                topk,
                positions.data_ptr(),
                prefix.data_ptr(),
                tokens,
                out.data_ptr(),
                sums.data_ptr(),
                0,
                0,
                sms,
                at,
            )

        goes = [np.stack([(idx[r] // (experts // ranks) == d).any(1) for d in range(ranks)], 1) for r in range(ranks)]
        copies = goes[rank].sum(1)[:, None]
        truth = (x[rank].astype(np.float32) * copies + np.float32(0)).astype(ml_dtypes.bfloat16)
        away, both = max(int(g.sum() - g[:, r].sum()) for r, g in enumerate(goes)), max(int(g.sum()) for g in goes)

        def check(sms: int, suffix: str) -> None:
            for received in (block, block8):
                self.poison(received.x, received.nbytes)
            for tensor in (out, sums):
                self.poison(tensor.data_ptr(), tensor.nbytes)
            engine.barrier(at)
            dispatch(sms)
            dispatch8(sms)
            combine(sms)
            self.wait()
            total = [len(want.handle.src_token), *want.num_recv_tokens_per_expert]
            for name, received, row, expected in (
                (f"bf16_dispatch{suffix}", block, 2 * hidden, np.asarray(want.recv_x)),
                (f"fp8_dispatch{suffix}", block8, hidden, want8),
            ):
                self.check(name, "counts", [rows, *each], total)
                self.check(name, "rows", self.view(received.x, (rows, row), np.uint8), expected.view(np.uint8))
                self.check(name, "choices", self.view(received.topk, (rows, topk), np.int64), want.recv_topk_idx)
                found = self.view(received.weights, (rows, topk), np.float32)
                self.check(name, "weights", found, want.recv_topk_weights)
                self.check(name, "sources", self.view(received.source, (rows,), np.int32), want.handle.src_token)
            found = self.view(block8.scales, (rows, hidden // 128), np.float32)
            self.check(f"fp8_dispatch{suffix}", "scales", found, want_scales)
            if ranks <= 2:  # sums of more equal rows are rounded on the way
                self.check(f"bf16_combine{suffix}", "rows", out.cpu().numpy().view(np.uint16), truth.view(np.uint16))
            self.check(f"bf16_combine{suffix}", "weights", sums.cpu().numpy(), weights[rank])

        meta, meta8 = 12 * topk + 4, 12 * topk + 4 + hidden // 32
        operations = {"fp8_dispatch": (dispatch8, hidden + meta8), "bf16_dispatch": (dispatch, 2 * hidden + meta)}
        for sms, suffix in ((24, ""), (12, "_12sm")):
            if sms > self.link.blocks:
                continue
            check(sms, suffix)
            for name, (operation, size) in operations.items():
                whole = partial(_one_after_another, counts, partial(operation, sms))
                self.time(f"{name}{suffix}", whole, away * size, both * size, sms)
                self.figures[f"{name}{suffix}_kernel_us"] = self.gpu_us(partial(operation, sms))
            size = 2 * hidden + 4 * topk
            self.time(f"bf16_combine{suffix}", partial(combine, sms), away * size, both * size, sms)
        self.figures["counts_us"] = self.gpu_us(counts)
        self.figures["peer_copy_gbs"] = self.peer_copy(block)
        all_to_all(self, "nccl_a2a", given.view(self.torch.bfloat16), goes, partial(self.came, x, goes))

    def low_latency(self) -> None:
        """Both halves in one launch; FP8 out, BF16 back."""
        args, engine, rank, ranks, at = self.args, self.engine, self.rank, self.ranks, self.at
        tokens, hidden, topk, experts = args.ll_tokens, args.hidden, args.topk, args.ll_experts
        local, rows = experts // ranks, ranks * tokens
        x, idx, weights = self.inputs(tokens, experts)
        want = reference.low_latency_dispatch(x, idx, rank, experts, tokens, use_fp8=True)
        given, choices, values = self.put(x[rank]), self.put(idx[rank]), self.put(weights[rank])
        out, scales = (
            self.poisoned(local, rows, hidden, dtype="uint8"),
            self.poisoned(local, hidden // 128, rows, dtype="float32"),
        )
        y, home = (
            self.poisoned(local, rows, 2 * hidden, dtype="uint8"),
            self.poisoned(tokens, 2 * hidden, dtype="uint8"),
        )
        count, source = self.poisoned(local, dtype="int32"), self.poisoned(local, rows, dtype="int32")
        ranges, row_map = self.poisoned(local, ranks, dtype="int64"), self.poisoned(ranks, tokens, topk, dtype="int32")
        engine.ll_configure(tokens, hidden, experts, topk, at)

        def dispatch(fp8: bool = True) -> None:
            engine.ll_dispatch(
                given.data_ptr(),
                choices.data_ptr(),
                tokens,
                fp8,
                False,
                False,
                (out if fp8 else y).data_ptr(),
                scales.data_ptr(),
                count.data_ptr(),
                source.data_ptr(),
                ranges.data_ptr(),
                row_map.data_ptr(),
                stream=at,
            )

        def combine() -> None:
            engine.ll_combine(
                y.data_ptr(),
                choices.data_ptr(),
                values.data_ptr(),
                row_map.data_ptr(),
                tokens,
                home.data_ptr(),
                stream=at,
            )

        dispatch()
        self.wait()
        self.check("ll_dispatch", "counts", count.cpu().numpy(), want.packed_recv_count)
        self.check("ll_dispatch", "ranges", ranges.cpu().numpy(), want.packed_recv_layout_range)
        wanted = want.packed_recv_scales
        assert wanted is not None  # with FP8 there are some
        got, factors = out.cpu().numpy(), scales.cpu().numpy()
        for e in range(local):
            n = int(want.packed_recv_count[e])
            self.check("ll_dispatch", "rows", got[e, :n], want.packed_recv_x[e, :n].view(np.uint8))
            self.check("ll_dispatch", "scales", factors[e, :, :n].T, wanted[e, :n])
        dispatch(False)
        combine()
        self.wait()
        truth = x[rank].astype(np.float64) * weights[rank].sum(1, dtype=np.float64)[:, None]
        if reference.calc_diff(home.cpu().numpy().view(ml_dtypes.bfloat16).astype(np.float64), truth) >= 1e-5:
            self.wrong.append(f"ll_combine: sums on rank {rank}")
        away = int(sum((idx[rank] // local == d).any(1).sum() for d in range(ranks) if d != rank))
        chosen = int((idx[rank] // local != rank).sum())
        message = hidden + hidden // 32
        every = chosen * ranks / max(ranks - 1, 1)  # rows of experts, those on this rank too
        sms = self.link.blocks
        self.time("ll_dispatch", dispatch, away * message, every * message, sms)
        self.time("ll_combine", combine, away * 2 * hidden, every * 2 * hidden, sms)
        goes = [np.stack([(idx[r] // local == d).any(1) for d in range(ranks)], 1) for r in range(ranks)]
        all_to_all(self, "nccl_ll_a2a", given.view(self.torch.bfloat16), goes, partial(self.came, x, goes))

    def buffer(self) -> None:
        """The same shapes through Buffer."""
        ll = tuple(part[self.rank] for part in self.inputs(self.args.ll_tokens, self.args.ll_experts))
        buffer_calls(self, *self.inputs(self.args.tokens, self.args.experts), ll)

    def result(self) -> dict[str, Any]:
        """What the parent prints."""
        wrong = [text for texts in self.group.all_gather(self.wrong) for text in texts]
        config = {**vars(self.args), "ranks": self.ranks}
        config.pop("out")
        return {
            "ok": not wrong,
            "wrong": sorted(set(wrong)),
            "device": self.torch.cuda.get_device_name(),
            "operations": list(self.sms),
            "sms": self.sms,
            "right": {name: not any(text.startswith(f"{name}:") for text in wrong) for name in self.sms},
            "figures": self.figures,
            "floors": self.floors,
            "config": config,
        }


def _one_after_another(*calls: Callable[[], None]) -> None:
    for call in calls:
        call()


def main() -> None:
    """Entry, under torchrun."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (
        ("tokens", 4096),
        ("hidden", 7168),
        ("experts", 256),
        ("topk", 8),
        ("ll-tokens", 128),
        ("ll-experts", 288),
        ("seed", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    bench = _Bench(parser.parse_args())
    bench.normal()
    bench.low_latency()
    bench.buffer()
    result = bench.result()
    if bench.rank == 0:
        bench.args.out.write_text(json.dumps(result))
    bench.group.barrier()
    bench.engine.close()
    bench.dist.destroy_process_group()


if __name__ == "__main__":
    main()
