"""A program written for DeepEP: one import is changed. Two GPUs, or none.

    torchrun --nproc-per-node 2 tutorials/deepep_program.py                        # a process for each GPU
    RDMAKIT_KERNELS=cpu torchrun --nproc-per-node 4 tutorials/deepep_program.py    # no GPU: processes share memory
    python tutorials/deepep_program.py                                             # one process, two emulated GPUs
"""

import os

import ml_dtypes
import numpy as np

TOKENS, HIDDEN, EXPERTS, TOPK = 64, 512, 16, 4


def under_torchrun(device: str) -> None:
    """Every line but the import is what a DeepEP program has; "cpu" stands where it has "cuda"."""
    import torch
    import torch.distributed as dist

    from rdmakit.compat.deep_ep import Buffer  # from deep_ep import Buffer

    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.manual_seed(rank)
    buffer = Buffer(dist.group.WORLD, num_nvl_bytes=64 << 20)
    x = torch.randn(TOKENS, HIDDEN, device=device).to(torch.bfloat16)
    weights, chosen = torch.rand(TOKENS, EXPERTS, device=device).topk(TOPK, dim=-1)
    per_rank, _, per_expert, goes, _ = buffer.get_dispatch_layout(chosen, EXPERTS)
    rows, _, _, counts, handle, _ = buffer.dispatch(
        x, num_tokens_per_rank=per_rank, is_token_in_rank=goes, num_tokens_per_expert=per_expert, topk_idx=chosen,
        topk_weights=weights,
    )  # fmt: skip
    y, _, _ = buffer.combine(rows * 2, handle)  # an expert that doubles
    want = 2 * x.float() * goes.sum(1, keepdim=True)
    assert torch.allclose(y.float(), want, rtol=1e-2), "sums are not those of the tokens that were sent"
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    print(f"rank {rank} of {ranks} on {where}: received {len(rows)} rows, {counts} by expert; ✓ every sum is right")
    buffer.destroy()
    dist.destroy_process_group()


def on_the_cpu_runner() -> None:
    """The same layer on one emulated host of two GPUs: the kernels run as fibres, nothing is measured."""
    import rdmakit
    from rdmakit.ep import routing
    from rdmakit.ep.normal import NormalBuffer

    print("no torchrun and no GPU here: two emulated GPUs, kernels on the CPU runner; times would be modelled")
    world = rdmakit.World(hosts=1, gpus_per_host=2)
    buffer = NormalBuffer(world, hidden=HIDDEN, topk=TOPK, experts=EXPERTS, max_tokens=TOKENS)
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((TOKENS, HIDDEN), np.float32).astype(ml_dtypes.bfloat16) for _ in range(2)]
    routed = [routing.uniform(TOKENS, num_experts=EXPERTS, top_k=TOPK, seed=r) for r in range(2)]
    chosen = [r.topk_idx for r in routed]
    got = buffer.dispatch(x, chosen, [r.topk_weights for r in routed])
    doubled = [(2 * g.recv_x.astype(np.float32)).astype(ml_dtypes.bfloat16) for g in got]
    sums, _ = buffer.combine(doubled, [g.handle for g in got])
    for rank, y in enumerate(sums):
        goes = np.stack([(chosen[rank] // (EXPERTS // 2) == d).any(1) for d in range(2)], 1).sum(1)
        want = (2 * x[rank].astype(np.float32) * goes[:, None]).astype(ml_dtypes.bfloat16)
        assert np.array_equal(y, want), "sums are not those of the tokens that were sent"
        print(f"rank {rank} of 2: received {len(got[rank].recv_x)} rows; ✓ every sum is right")


if __name__ == "__main__":
    if "RANK" in os.environ:
        under_torchrun("cpu" if os.environ.get("RDMAKIT_KERNELS") == "cpu" else "cuda")
    else:
        on_the_cpu_runner()
