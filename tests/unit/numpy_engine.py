"""An engine of Buffer's made of NumPy: it reads and writes at addresses, as one for GPUs does, and computes the obvious
way. Ranks meet by what they are given (`deepep_rig.Meeting`).
"""

import ctypes
import weakref

import ml_dtypes
import numpy as np

from rdmakit.ep.engine import RECEIVE, SEND
from rdmakit.ep.numerics import quantize_fp8

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def view(address, dtype, *shape):
    """Memory at an address as an array."""
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes == 0:
        return np.empty(shape, kind)
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(kind).reshape(shape)


class Block:
    """What receive_block gives."""

    def __init__(self, parts):
        self.nbytes = sum(-(-nbytes // 8) * 8 for nbytes in parts.values())
        self.memory = np.full(max(8, self.nbytes), 0xEE, np.uint8)
        self.address = at = self.memory.ctypes.data
        for name, nbytes in parts.items():
            setattr(self, name, at if nbytes else 0)
            at += -(-nbytes // 8) * 8


class NumpyEngine:
    """rdmakit.ep.engine.Engine, by the book."""

    max_sms, largest_block = 64, 1 << 30

    def __init__(self, meeting, rank, heap_bytes):
        self.meeting, self.rank, self.ranks = meeting, rank, meeting.ranks
        self._heap = np.zeros(heap_bytes, np.uint8)
        self.heap_address, self.heap_bytes, self.heap_owner = self._heap.ctypes.data, heap_bytes, self._heap
        self.calls, self.returned, self.closed, self.sizes = [], 0, False, None
        self.masked = np.zeros(self.ranks, np.int32)
        self.sent = self.wrong = None
        self.told = False

    def exchange(self, value):
        return self.meeting.exchange(self.rank, value)

    def check(self, *, unless_told=False):
        if self.wrong is not None and not (unless_told and self.told):
            self.told = True
            raise self.wrong

    def copy(self, to, source, nbytes, stream):
        self.calls.append(("copy", stream))
        view(to, np.uint8, nbytes)[:] = view(source, np.uint8, nbytes)

    def layout(self, topk_idx, tokens, topk, experts, tokens_per_rank, tokens_per_expert, is_in_rank, stream):
        self.calls.append(("layout", stream))
        idx = view(topk_idx, np.int64, tokens, topk)
        in_rank = view(is_in_rank, bool, tokens, self.ranks)
        per = experts // self.ranks
        for rank in range(self.ranks):
            in_rank[:, rank] = ((idx >= rank * per) & (idx < (rank + 1) * per)).any(1)
        view(tokens_per_rank, np.int32, self.ranks)[:] = in_rank.sum(0)
        view(tokens_per_expert, np.int32, experts)[:] = [(idx == expert).sum() for expert in range(experts)]

    def notify(self, is_in_rank, tokens, tokens_per_rank, tokens_per_expert, experts, expert_alignment, positions,
               prefix, stream):  # fmt: skip
        self.calls.append(("notify", stream))
        in_rank = view(is_in_rank, bool, tokens, self.ranks)
        assert (view(tokens_per_rank, np.int32, self.ranks) == in_rank.sum(0)).all()
        place = view(positions, np.int32, tokens, self.ranks)
        place[:] = np.where(in_rank, in_rank.cumsum(0) - 1, -1)
        all_counts = self.exchange((in_rank.sum(0), view(tokens_per_expert, np.int32, experts).copy()))
        matrix = view(prefix, np.int32, self.ranks, self.ranks)
        matrix[:] = np.cumsum([rows for rows, _ in all_counts], axis=0)
        mine = slice(self.rank * experts // self.ranks, (self.rank + 1) * experts // self.ranks)
        received = sum(counts[mine] for _, counts in all_counts)
        self._counts = int(matrix[-1, self.rank]), [-(-int(n) // expert_alignment) * expert_alignment for n in received]

    def counts(self):
        self.calls.append(("counts",))
        return self._counts

    def receive_block(self, rows, row_bytes, scale_bytes, topk, stream):
        self.calls.append(("receive_block", stream))
        sizes = {"x": row_bytes, "scales": scale_bytes, "topk": 8 * topk, "weights": 4 * topk, "source": 4}
        block = Block({name: rows * nbytes for name, nbytes in sizes.items()})
        weakref.finalize(block, self._take_back)
        return block

    def _take_back(self):
        self.returned += 1

    def dispatch(self, x, row_bytes, scales, scale_bytes, topk_idx, topk_weights, topk, experts, tokens, positions,
                 prefix, received, rows, num_sms, stream):  # fmt: skip
        self.calls.append(("dispatch", stream, num_sms))
        fields = {"x": (x, np.uint8, row_bytes), "scales": (scales, np.uint8, scale_bytes),
                  "topk": (topk_idx, np.int64, topk), "weights": (topk_weights, np.float32, topk)}  # fmt: skip
        mine = {name: view(at, kind, tokens, n).copy() for name, (at, kind, n) in fields.items()}
        everyone = self.exchange((mine, view(positions, np.int32, tokens, self.ranks).copy()))
        matrix = view(prefix, np.int32, self.ranks, self.ranks)
        out = {name: view(getattr(received, name), kind, rows, n) for name, (_, kind, n) in fields.items()}
        out["topk"][:] = -1
        out["weights"][:] = 0
        source_token = view(received.source, np.int32, rows)
        for source, (fields_of, place) in enumerate(everyone):
            first = matrix[source - 1, self.rank] if source else 0
            for token in np.flatnonzero(place[:, self.rank] >= 0):
                row = first + place[token, self.rank]
                source_token[row] = token
                for name in ("x", "scales"):
                    out[name][row] = fields_of[name][token]
                if topk:
                    local = fields_of["topk"][token] - self.rank * (experts // self.ranks)
                    here = (local >= 0) & (local < experts // self.ranks)
                    out["topk"][row] = np.where(here, local, -1)
                    out["weights"][row] = np.where(here, fields_of["weights"][token], 0)

    def combine(self, x, rows, hidden, topk_weights, topk, positions, prefix, tokens, out, out_weights, bias_0, bias_1,
                num_sms, stream):  # fmt: skip
        self.calls.append(("combine", stream, num_sms))
        staged = self.receive_block(rows, 2 * hidden, 0, 0, stream)
        weights = view(topk_weights, np.float32, rows, topk)
        everyone = self.exchange((view(x, BF16, rows, hidden).copy(), weights.copy()))
        place, matrix = view(positions, np.int32, tokens, self.ranks), view(prefix, np.int32, self.ranks, self.ranks)
        total, weights = np.zeros((tokens, hidden), np.float32), np.zeros((tokens, topk), np.float32)
        for token, rank in np.argwhere(place >= 0):
            row = (matrix[self.rank - 1, rank] if self.rank else 0) + place[token, rank]
            rows_x, rows_weights = everyone[rank]
            total[token] += rows_x[row].astype(np.float32)
            weights[token] += rows_weights[row]
        for bias in filter(None, (bias_0, bias_1)):
            total += view(bias, BF16, tokens, hidden).astype(np.float32)
        view(out, BF16, tokens, hidden)[:] = total.astype(BF16)
        if out_weights:
            view(out_weights, np.float32, tokens, topk)[:] = weights
        return [staged]

    # ---- low latency
    def ll_configure(self, max_tokens, hidden, experts, topk):
        self.calls.append(("ll_configure", max_tokens, hidden, experts, topk))
        self.sizes = max_tokens, hidden, experts, topk
        self.local, self.rows = experts // self.ranks, self.ranks * max_tokens

    def ll_clean(self, stream):
        self.calls.append(("ll_clean", stream))

    def ll_dispatch(self, x, topk_idx, tokens, use_fp8, round_scale, use_ue8m0, out_x, out_scales, out_count, src_info,
                    layout_range, row_map, statistics, wait_statistics, phases, stream):  # fmt: skip
        self.calls.append(("ll_dispatch", phases, stream))
        max_tokens, hidden, _, topk = self.sizes
        if phases & SEND:
            mine = view(x, BF16, tokens, hidden).copy(), view(topk_idx, np.int64, tokens, topk).copy()
            self.sent = self.exchange(mine)
        if not phases & RECEIVE:
            return
        found = view(out_x, FP8 if use_fp8 else BF16, self.local, self.rows, hidden)
        tokens_of = view(src_info, np.int32, self.local, self.rows)
        ranges = view(layout_range, np.int64, self.local, self.ranks)
        where = view(row_map, np.int32, self.ranks, max_tokens, topk)
        where[:] = -1
        counts = np.zeros(self.local, np.int32)
        for expert in range(self.local):
            for source, (rows_x, idx) in enumerate(self.sent):
                begin = counts[expert]
                for token, choice in np.argwhere(idx == self.rank * self.local + expert):
                    row = counts[expert]
                    where[source, token, choice] = expert * self.rows + row
                    tokens_of[expert, row] = token
                    if use_fp8:
                        found[expert, row], scales = _quantized(rows_x[token], round_scale)
                        _put_scales(out_scales, self.local, self.rows, hidden, use_ue8m0, expert, row, scales)
                    else:
                        found[expert, row] = rows_x[token]
                    counts[expert] += 1
                ranges[expert, source] = int(begin) << 32 | int(counts[expert] - begin)
        view(out_count, np.int32, self.local)[:] = counts
        if statistics:
            view(statistics, np.int32, self.local)[:] += counts
        if wait_statistics:
            view(wait_statistics, np.int64, self.ranks)[:] += 7

    def ll_combine(self, x, topk_idx, topk_weights, row_map, tokens, out, wait_statistics, phases, stream):
        self.calls.append(("ll_combine", phases, stream))
        max_tokens, hidden, _, topk = self.sizes
        if phases & SEND:
            rows = view(x, BF16, self.local, self.rows, hidden)
            where = view(row_map, np.int32, self.ranks, max_tokens, topk)
            self.home = self.exchange((rows.reshape(-1, hidden).copy(), where.copy()))
        if phases & RECEIVE:
            total, weights = np.zeros((tokens, hidden), np.float32), view(topk_weights, np.float32, tokens, topk)
            for rows, where in self.home:
                for token, choice in np.argwhere(where[self.rank, :tokens] >= 0):
                    row = rows[where[self.rank, token, choice]].astype(np.float32)
                    total[token] += weights[token, choice] * row
            view(out, BF16, tokens, hidden)[:] = total.astype(BF16)
            if wait_statistics:
                view(wait_statistics, np.int64, self.ranks)[:] += 9

    def mask_update(self, rank, masked, stream):
        self.masked[rank] = masked

    def mask_query(self, out, stream):
        view(out, np.int32, self.ranks)[:] = self.masked

    def mask_clean(self, stream):
        self.masked[:] = 0

    def close(self):
        self.closed = True


def _quantized(row, round_scale):
    q, scales = quantize_fp8(row.astype(np.float32)[None])
    if round_scale:
        scales = np.exp2(np.ceil(np.log2(scales))).astype(np.float32)
        q = (row.astype(np.float32).reshape(-1, 128) / scales.reshape(-1, 1)).astype(FP8).reshape(1, -1)
    return q[0], scales[0]


def _put_scales(address, local, rows, hidden, use_ue8m0, expert, row, scales):
    if use_ue8m0:
        exponents = (scales.view(np.int32) >> 23).astype(np.uint8)
        view(address, np.uint8, local, hidden // 512, rows, 4)[expert, :, row] = exponents.reshape(-1, 4)
    else:
        view(address, np.float32, local, hidden // 128, rows)[expert, :, row] = scales
