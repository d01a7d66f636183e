"""Train a small mixture-of-experts language model, then record how it routes text that it has never seen.

Synthetic routers are too kind: real experts have favourites, and neighbouring tokens want the same ones.
This script makes the real thing in minutes on a laptop: a decoder with a DeepSeek-V3-style router (sigmoid
scores, group-limited top-8 of 64, balanced by a bias instead of an auxiliary loss) learns the Python standard
library's own sources, and what reaches one of its MoE layers on *held-out* files is saved for
`rdmakit.ep.recording`.

    pip install "rdmakit[record]"                       # PyTorch, for this script only
    python tutorials/record_routing.py --out routing.npz
    python tutorials/record_routing.py --steps 20 --out quick.npz      # half a minute, learns little

Leans on PyTorch (CPU), `rdmakit.ep.routing.skew` and `rdmakit.ep.recording.save_recording`.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import math
import pathlib
import platform
import re
import sysconfig
import time

import numpy as np

from rdmakit.ep.recording import save_recording
from rdmakit.ep.routing import skew

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
except ImportError:
    raise SystemExit(
        'this script needs PyTorch, which rdmakit itself never does: pip install "rdmakit[record]" '
        "(or pip install torch); without it, use the shipped recording: rdmakit.ep.recording.shipped()"
    ) from None

VOCABULARY = 2048
CONTEXT = 256  # tokens a sequence


# ---- text: every module of the running interpreter's standard library --------------------------------------


def read_corpus(limit_bytes: int, seed: int) -> tuple[str, str, dict[str, object]]:
    """Training text, held-out text (whole files, one in ten) and where they came from."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    # Tests and generated tables would drown prose and code in literals; site-packages differs per machine.
    skipped = {"site-packages", "dist-packages", "test", "tests", "encodings", "idle_test", "__pycache__",
               "pydoc_data", "lib2to3"}
    paths = [p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts)]
    paths.sort(key=lambda p: p.relative_to(root).as_posix())
    np.random.default_rng(seed).shuffle(paths)  # type: ignore[arg-type]
    train: list[str] = []
    held_out: list[str] = []
    total = 0
    for number, path in enumerate(paths):
        text = path.read_text(encoding="utf-8", errors="replace")
        (held_out if number % 10 == 0 else train).append(text)
        total += len(text)
        if total > limit_bytes:
            break
    digest = hashlib.sha256("".join(train + held_out).encode()).hexdigest()
    source = {"text": "Python standard library sources", "python": platform.python_version(),
              "sha256": digest, "train_files": len(train), "held_out_files": len(held_out),
              "characters": total}
    return "\n".join(train), "\n".join(held_out), source


class Tokenizer:
    """The most frequent words, indents and marks are one token each; the rest falls back to bytes."""

    PIECE = re.compile(r" ?[A-Za-z]+|_|\n *| +|[0-9]|[^\sA-Za-z0-9_]|\s")

    def __init__(self, text: str) -> None:
        counts = collections.Counter(self.PIECE.findall(text))
        common = [piece for piece, _ in counts.most_common(VOCABULARY - 256)]
        self.ids = {piece: 256 + i for i, piece in enumerate(common)}

    def encode(self, text: str) -> Tensor:
        tokens: list[int] = []
        for piece in self.PIECE.findall(text):
            whole = self.ids.get(piece)
            tokens.extend(piece.encode() if whole is None else (whole,))
        return torch.tensor(tokens, dtype=torch.long)


# ---- the model ---------------------------------------------------------------------------------------------


class Router(nn.Module):
    """DeepSeek-V3's gate: sigmoid scores; a bias steers *which* experts win but never their weights."""

    bias: Tensor
    busiest = 0.0  # max/mean tokens an expert in the last training step

    def __init__(self, width: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.centroids = nn.Parameter(torch.randn(args.experts, width) / math.sqrt(width))
        self.register_buffer("bias", torch.zeros(args.experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.args
        scores = torch.sigmoid(x @ self.centroids.T)  # [T, E]
        wanted = (scores + self.bias).view(len(x), a.groups, -1)
        best_groups = wanted.topk(2, dim=-1).values.sum(-1).topk(a.top_groups, dim=-1).indices
        closed = torch.ones(len(x), a.groups, dtype=torch.bool).scatter_(1, best_groups, False)
        wanted = wanted.masked_fill(closed[:, :, None], -math.inf).flatten(1)
        idx = wanted.topk(a.top_k, dim=-1).indices
        weights = scores.gather(1, idx)
        weights = weights / weights.sum(-1, keepdim=True) * a.scale
        if self.training:  # auxiliary-loss-free balancing, arXiv 2408.15664
            load = torch.bincount(idx.flatten(), minlength=a.experts).float()
            self.bias += a.balance * torch.sign(load.mean() - load)
            self.busiest = float(load.max() / load.mean())
        return idx, weights


class MoE(nn.Module):
    """One shared expert plus the routed ones, each a small SwiGLU."""

    def __init__(self, width: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.router = Router(width, args)
        self.shared = SwiGLU(width, args.expert_width)
        self.up = nn.Parameter(torch.randn(args.experts, width, 2 * args.expert_width) / math.sqrt(width))
        self.down = nn.Parameter(torch.randn(args.experts, args.expert_width, width) / math.sqrt(4 * width))
        self.seen: list[tuple[Tensor, Tensor, Tensor]] | None = None  # filled while recording

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        idx, weights = self.router(flat)
        if self.seen is not None:
            self.seen.append((flat, idx, weights))
        # The dispatch that rdmakit does over the network, here within one tensor: rows grouped by expert.
        order = idx.flatten().argsort(stable=True)
        counts = torch.bincount(idx.flatten(), minlength=len(self.up)).tolist()
        token = order // idx.shape[1]
        done = []
        for expert, rows in enumerate(flat[token].split(counts)):
            gate, value = (rows @ self.up[expert]).chunk(2, dim=-1)
            done.append((F.silu(gate) * value) @ self.down[expert])
        weighted = torch.cat(done) * weights.flatten()[order, None]
        return (self.shared(flat).index_add(0, token, weighted)).view_as(x)


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm causal attention, then a feed-forward part that is dense (first layer) or MoE."""

    def __init__(self, width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_a, self.norm_f = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.feed_forward = feed_forward
        self.heads = width // 64

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_a(x)).view(batch, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        # Half of every key is the previous token's: "what followed this word before?" takes one layer.
        k = torch.cat((k[..., :32], F.pad(k[:, :, :-1, 32:], (0, 0, 1, 0))), dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(self.norm_f(x))


class Model(nn.Module):
    """Three layers, the first dense, as DeepSeek-V3 keeps its first layers dense."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        width = args.hidden
        self.embed, self.where = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList([
            Block(width, SwiGLU(width, 2 * width)),
            Block(width, MoE(width, args)),
            Block(width, MoE(width, args)),
        ])
        self.norm = nn.RMSNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.where.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats a token."""
        x = self.embed(tokens) + self.where.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embed.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ---- training and recording --------------------------------------------------------------------------------


def windows(tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def spread(tokens: Tensor, num_tokens: int) -> Tensor:
    """Starts of enough sequences for `num_tokens`, evenly over the text: many files have their say."""
    return torch.linspace(0, len(tokens) - CONTEXT - 1, -(-num_tokens // CONTEXT)).long()


@torch.no_grad()
def held_out_loss(model: Model, tokens: Tensor, num_tokens: int) -> float:
    model.eval()
    starts = spread(tokens, num_tokens)
    losses = [float(model(*windows(tokens, part))) * len(part) for part in starts.split(8)]
    model.train()
    return sum(losses) / len(starts)


def train(model: Model, tokens: Tensor, held_out: Tensor,
          args: argparse.Namespace) -> list[tuple[int, float]]:
    """AdamW with warm-up and cosine decay; returns (step, held-out loss) pairs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05)
    curve: list[tuple[int, float]] = []
    began, recent = time.monotonic(), 0.0
    for step in range(1, args.steps + 1):
        progress = step / args.steps
        rate = args.lr * min(1.0, step / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(tokens) - CONTEXT - 1, (args.batch,))
        loss = model(*windows(tokens, starts))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step == 1 or step % args.report == 0 or step == args.steps:
            curve.append((step, held_out_loss(model, held_out, 16 * CONTEXT)))
            seconds = time.monotonic() - began
            busiest = max(m.busiest for m in model.modules() if isinstance(m, Router))
            print(f"step {step:5d}/{args.steps}  train {recent:.3f}  held out {curve[-1][1]:.3f} nats/token"
                  f"  busiest expert {busiest:.1f}x the mean  {seconds:4.0f} s, "
                  f"{seconds / step * (args.steps - step):4.0f} s to go", flush=True)
    return curve


@torch.no_grad()
def record(model: Model, tokens: Tensor, num_tokens: int, layer: int) -> tuple[np.ndarray, ...]:
    """Hidden states, expert indices and weights that reach MoE layer `layer` on held-out sequences."""
    moe = model.blocks[layer].feed_forward
    assert isinstance(moe, MoE)
    model.eval()
    moe.seen = []
    for part in spread(tokens, num_tokens).split(8):
        model(*windows(tokens, part))
    columns = [torch.cat(column)[:num_tokens].numpy() for column in zip(*moe.seen, strict=True)]
    moe.seen = None
    return tuple(columns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train a small MoE language model and record its routing")
    add = parser.add_argument
    add("--out", default="routing_stdlib.npz", help="where the recording goes")
    add("--steps", type=int, default=1000, help="training steps")
    add("--batch", type=int, default=8, help=f"sequences of {CONTEXT} tokens a step")
    add("--record-tokens", type=int, default=4096, help="held-out tokens to record")
    add("--layer", type=int, default=2, choices=(1, 2), help="which of the two MoE layers to record")
    add("--hidden", type=int, default=256, help="model width, a multiple of 128")
    add("--expert-width", type=int, default=64, help="inner width of one expert")
    add("--experts", type=int, default=64)
    add("--top-k", type=int, default=8)
    add("--groups", type=int, default=8, help="expert groups (DeepSeek-V3: 8)")
    add("--top-groups", type=int, default=4, help="groups that a token may use (DeepSeek-V3: 4)")
    add("--scale", type=float, default=2.5, help="sum of a token's weights (DeepSeek-V3: 2.5)")
    add("--balance", type=float, default=0.01, help="step of the balancing bias (DeepSeek-V3: 0.001)")
    add("--lr", type=float, default=3e-3)
    add("--corpus-bytes", type=int, default=6_000_000)
    add("--threads", type=int, default=0, help="CPU threads, 0 for all")
    add("--report", type=int, default=50, help="steps between reports")
    add("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.hidden % 128:
        parser.error(f"--hidden {args.hidden}: must be a multiple of 128, the channels of one FP8 scale")
    if args.experts % args.groups or args.top_groups * (args.experts // args.groups) < args.top_k:
        parser.error("--experts must divide into --groups, and --top-groups of them hold --top-k experts")
    return args


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_text, held_out_text, source = read_corpus(args.corpus_bytes, args.seed)
    tokenizer = Tokenizer(train_text)
    tokens, held_out = tokenizer.encode(train_text), tokenizer.encode(held_out_text)
    model = Model(args)
    print(f"{len(tokens):,} training and {len(held_out):,} held-out tokens, "
          f"{len(train_text) / len(tokens):.2f} characters each; "
          f"{sum(p.numel() for p in model.parameters()):,} parameters; "
          f"a blind guess costs {math.log(VOCABULARY):.3f} nats", flush=True)
    if len(held_out) <= args.record_tokens + CONTEXT:
        raise SystemExit(f"--record-tokens {args.record_tokens}: only {len(held_out)} held-out tokens; "
                         "lower it or raise --corpus-bytes")
    curve = train(model, tokens, held_out, args)
    final = held_out_loss(model, held_out, args.record_tokens)
    hidden, topk_idx, topk_weights = record(model, held_out, args.record_tokens, args.layer)
    arguments = {name: value for name, value in vars(args).items() if name != "out"}
    made = {"script": "tutorials/record_routing.py", "arguments": arguments, "source": source,
            "torch": torch.__version__, "held_out_curve": curve,
            "held_out_nats_per_token": round(final, 4), "blind_guess_nats": round(math.log(VOCABULARY), 4)}
    save_recording(args.out, hidden=hidden, topk_idx=topk_idx, topk_weights=topk_weights,
                   num_experts=args.experts, made=made)
    print(f"held-out loss on the recorded text: {final:.3f} nats/token")
    for name, value in skew(topk_idx, args.experts, num_ranks=8).items():
        print(f"  {name:32s} {value:.4f}")
    print(f"{args.out}: {pathlib.Path(args.out).stat().st_size / 2**20:.2f} MiB, "
          f"{len(hidden)} tokens x {hidden.shape[1]}, top-{args.top_k} of {args.experts}")


if __name__ == "__main__":
    main()
