"""Dispatch and combine between two hosts, over their RDMA devices and both ports of each. No GPU is needed.

    torchrun --nnodes 2 --node-rank R --master-addr HOST0 --nproc-per-node 2 tutorials/torchrun_two_hosts.py
    python tutorials/torchrun_two_hosts.py        # one machine without RDMA: two threads are the hosts, NICs emulated

RDMAKIT_DEVICES=mlx5_0,mlx5_1 names the ports that a host may use; by default it takes all. A host's ranks share memory.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

TOKENS, HIDDEN, EXPERTS, TOPK = 64, 512, 8, 2
NICS = {0: ["mlx5_0", "mlx5_1"], 1: ["mlx5_2", "mlx5_3"]}


def on_two_hosts() -> None:
    """DeepEP's calls. Only RDMAKIT_KERNELS is not DeepEP's: it lets kernels run on the CPU, and NICs do the rest."""
    os.environ["RDMAKIT_KERNELS"] = "cpu"
    import torch
    import torch.distributed as dist

    from rdmakit.ep import Buffer, Config

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    hint = Config(8).get_rdma_buffer_size_hint(2 * HIDDEN, ranks)
    buffer = Buffer(dist.group.WORLD, num_nvl_bytes=16 << 20, num_rdma_bytes=hint, num_qps_per_rank=4)
    x, (weights, chosen) = torch.randn(TOKENS, HIDDEN).bfloat16(), torch.rand(TOKENS, EXPERTS).topk(TOPK, dim=-1)
    per_rank, per_host, per_expert, goes, _ = buffer.get_dispatch_layout(chosen, EXPERTS)
    rows, _, _, counts, handle, _ = buffer.dispatch(
        x, num_tokens_per_rank=per_rank, num_tokens_per_rdma_rank=per_host, is_token_in_rank=goes,
        num_tokens_per_expert=per_expert, topk_idx=chosen, topk_weights=weights,
    )  # fmt: skip
    y, _, _ = buffer.combine(rows, handle)
    assert torch.equal(y, (x.float() * goes.sum(1, keepdim=True)).bfloat16()), "sums are not those of the tokens"
    sent = 0 if per_host is None else buffer.runtime.device_queues.mesh.sent_bytes()  # None: all ranks on one host
    print(f"rank {rank} of {ranks}: received {len(rows)} rows, {counts} by expert; ports sent {sent} B; ✓ sums right")
    buffer.destroy()
    dist.destroy_process_group()


def one_host_of_two(rank: int, place: str) -> str:
    """The layer below Buffer: open, meet, join, call."""
    from rdmakit.connect import meet, open_paths
    from rdmakit.ep.device_hosts import RunnerHost, doorbells_of, shape_of
    from rdmakit.ep.host_trial import HostTrial, Workload

    paths = open_paths(NICS[rank])
    shape = shape_of(2, 1, num_qps_per_rank=4, rdma_bytes=1 << 20, nvl_bytes=4 << 20, max_tokens=TOKENS)
    host = RunnerHost(shape, rank)
    engine = host.join(meet(place, rank, 2), paths)
    trial = HostTrial(engine, host.world, Workload(TOKENS, HIDDEN, EXPERTS, TOPK), num_sms=8)
    trial.normal(seed=1)
    trial.low_latency(seed=2, fp8=True)
    assert not trial.wrong, trial.wrong
    table, posted = engine.device_queues.mesh.table(), engine.device_queues.mesh.posted_blocks()
    engine.close()
    return f"{doorbells_of(paths)}\n{table}\n  basic blocks posted by port: {posted}; ✓ all is NumPy's, bit for bit"


def on_emulated_nics() -> None:
    """Two threads; libibverbs and libmlx5 are the distribution's own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        for said in threads.map(one_host_of_two, range(2), [f"file:{folder}/meeting"] * 2):
            print(said)


if "RANK" in os.environ:
    on_two_hosts()
elif "--here" in sys.argv:
    on_emulated_nics()
else:
    print("no torchrun here: two threads are the hosts, each with two emulated NICs under libmlx5", flush=True)
    command = [sys.executable, "-m", "rdmakit", "connectx", "--nics", "4", "--", sys.executable, __file__, "--here"]
    sys.exit(subprocess.run(command).returncode)
