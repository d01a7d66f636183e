"""Two ranks, two GPUs: who maps what, work while rows are under way, a layer as a CUDA graph, and how to time one.

    torchrun --nproc-per-node 2 tutorials/torchrun_two_gpus.py    # a rank is a process with a GPU of its own
    python tutorials/torchrun_two_gpus.py                         # no GPU: two_emulated_gpus.py, which says so
"""

import importlib.util
import os
import time

import two_emulated_gpus

TOKENS, HIDDEN, EXPERTS, TOPK = 128, 1024, 16, 4


def on_gpus() -> None:
    import torch
    import torch.distributed as dist

    from rdmakit.ep import Buffer

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything touches a GPU
    dist.init_process_group("nccl")
    rank = dist.get_rank()
    nbytes = Buffer.get_low_latency_rdma_size_hint(TOKENS, HIDDEN, dist.get_world_size(), EXPERTS)
    moe = Buffer(dist.group.WORLD, num_rdma_bytes=nbytes, low_latency_mode=True)
    # Each rank has allocated one heap and mapped all others': what it stores at another's address goes over NVLink.
    print(f"rank {rank}: process {os.getpid()}, heaps as it sees them: {[hex(at) for at in moe.runtime.link.heaps]}")
    x = torch.randn(TOKENS, HIDDEN, device="cuda").to(torch.bfloat16)
    weights, chosen = torch.rand(TOKENS, EXPERTS, device="cuda").topk(TOPK, dim=-1)

    def layer():
        rows, _, handle, _, hook = moe.low_latency_dispatch(
            x, chosen, TOKENS, EXPERTS, use_fp8=False, return_recv_hook=True
        )
        torch.mm(x, x.T)  # rows are under way meanwhile, and no SM waits for them
        hook()  # from here on the stream waits for rows
        return moe.low_latency_combine(2 * rows, chosen, weights, handle)[0]  # an expert that doubles

    def gpu_us(call) -> float:  # events lie on the GPU; the ranks start together, the slower one counts
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(20)]
        for begin, end in marks:
            dist.barrier()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times = torch.tensor([1e3 * begin.elapsed_time(end) for begin, end in marks], device="cuda")
        dist.all_reduce(times, dist.ReduceOp.MAX)
        return times.median().item()

    layer()
    graph = torch.cuda.CUDAGraph()  # epochs are counted on the GPU: a replay needs no new arguments
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's own thread looks at events meanwhile
        y = layer()
    x.copy_(torch.randn_like(x))  # other tokens in the same memory
    graph.replay()
    torch.testing.assert_close(y.float(), 2 * x.float() * weights.sum(1, keepdim=True), rtol=2e-2, atol=2e-2)
    began = time.perf_counter()
    layer()
    queued = 1e6 * (time.perf_counter() - began)  # says nothing of the layer: Python has only queued it
    times = f"{gpu_us(layer):.0f} µs, as a graph {gpu_us(graph.replay):.0f} µs"
    print(f"rank {rank}: queued in {queued:.0f} µs, on the GPU {times}; ✓ a replay brings what x holds now")
    moe.destroy()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ and importlib.util.find_spec("cupy") is not None:
        on_gpus()
    elif os.environ.get("RANK", "0") == "0":  # torchrun without GPUs: one process is enough
        two_emulated_gpus.main()
