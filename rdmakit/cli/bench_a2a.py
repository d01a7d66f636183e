"""What a program without dispatch would do: permute rows by rank, NCCL's all-to-all of equal shares, permute again.

Leans on bench_rank, torch.distributed. Shares are padded to the largest, as all-to-all of one shape asks; what comes is
put into the order of dispatch: by the rank that it came from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.cli.bench_rank import BenchRank

__all__ = ["all_to_all", "shares"]

Array = np.ndarray[Any, Any]


def shares(goes: list[Array], rank: int) -> tuple[int, Array, Array]:
    """Rows of a share; which token each row that is sent is, int64 [ranks * share]; which rows that came are meant.

    `goes`: bool [tokens, ranks] of every rank. Padding is token 0 and is no row that is meant.

    >>> share, send, keep = shares([np.array([[1, 0], [1, 1]], bool), np.array([[0, 1]], bool)], 0)
    >>> share, send.tolist(), keep.tolist()
    (2, [0, 1, 1, 0], [0, 1])
    """
    ranks = len(goes)
    share = max(1, max(int(g.sum(0).max(initial=0)) for g in goes))
    send = np.zeros((ranks, share), np.int64)
    for d in range(ranks):
        tokens = np.flatnonzero(goes[rank][:, d])
        send[d, : len(tokens)] = tokens
    keep = [r * share + np.arange(int(goes[r][:, rank].sum())) for r in range(ranks)]
    return share, send.reshape(-1), np.concatenate(keep).astype(np.int64)


def all_to_all(bench: BenchRank, name: str, x: list[Array], goes: list[Array]) -> None:
    """Checks and times it: figures NAME_us, NAME_before_us, NAME_after_us (permutations), NAME_permuted_us (all three).

    `x`: BF16 [tokens, hidden] of every rank; `goes`: bool [tokens, ranks] of every rank.
    """
    torch, rank, hidden = bench.torch, bench.rank, x[bench.rank].shape[1]
    share, send_index, keep_index = shares(goes, rank)
    rows = bench.put(x[rank]).view(torch.bfloat16)
    order, kept = bench.put(send_index), bench.put(keep_index)
    send, came = (bench.poisoned(bench.ranks * share, hidden, dtype="bfloat16") for _ in range(2))
    final = bench.poisoned(len(keep_index), hidden, dtype="bfloat16")

    def before() -> None:
        torch.index_select(rows, 0, order, out=send)

    def exchange() -> None:
        bench.dist.all_to_all_single(came, send)

    def after() -> None:
        torch.index_select(came, 0, kept, out=final)

    def whole() -> None:
        before()
        exchange()
        after()

    with torch.cuda.stream(bench.stream):
        whole()
    bench.wait()
    want = np.concatenate([x[r][goes[r][:, rank]] for r in range(bench.ranks)])
    found = final.view(torch.uint8).cpu().numpy()
    for operation in (name, f"{name}_permuted"):
        bench.check(operation, "rows", found, want.view(np.uint8))
    away, both = max(int(g.sum() - g[:, r].sum()) for r, g in enumerate(goes)), max(int(g.sum()) for g in goes)
    for operation, call in ((name, exchange), (f"{name}_permuted", whole)):
        bench.time(operation, call, 2 * hidden * away, 2 * hidden * both, None, walls=False)
    bench.figures[f"{name}_before_us"] = bench.gpu_us(before)
    bench.figures[f"{name}_after_us"] = bench.gpu_us(after)
