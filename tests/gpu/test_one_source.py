"""The very files that the emulator runs, on a GPU: compiled by NVRTC through CuPy, their results against NumPy.

Here run the kernels that need no NIC, and what launches them; what rings doorbells is in test_world.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import rdmakit
from rdmakit import gpu
from rdmakit.device import LAYOUT_VERSION
from rdmakit.device.handle import WATCH
from rdmakit.ep import abi, routing
from rdmakit.ep.layout import get_dispatch_layout
from rdmakit.errors import BadArgument, CompileError, HangError, LaunchError

cupy = pytest.importorskip("cupy", reason="CuPy is not installed (pip install cupy-cuda13x)")

pytestmark = pytest.mark.gpu
KERNELS = sorted((Path(rdmakit.get_include()) / "kernels").glob("*.cu"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_loads_on_this_device(path):
    """Compiled for the device at hand, loaded by its driver, and its parameters are understood."""
    module = gpu.stock_module(path.stem)
    assert module.kernels
    for name in module.kernels:
        kernel = module.get_function(name)
        assert kernel.registers > 0 and len(kernel.sizes) == len(kernel.parameters)


@pytest.mark.parametrize(("hosts", "gpus", "tokens"), [(1, 2, 33), (4, 2, 257), (2, 8, 4096)])
@pytest.mark.parametrize("blocks", [1, 20])
def test_layout_kernel(hosts, gpus, tokens, blocks, seed):
    """ep_layout with 32 lanes a warp: counts, orders and slots, against NumPy."""
    ranks, experts, topk, channels = hosts * gpus, 256, 8, 10
    chosen = routing.uniform(tokens, num_experts=experts, top_k=topk, seed=seed).masked(0.2, seed=seed)
    pod = np.zeros(1, abi.EP_RANK)
    for name, value in {
        "layout_version": LAYOUT_VERSION, "ranks": ranks, "hosts": hosts, "local_ranks": gpus, "channels": channels,
        "experts": experts, "local_experts": experts // ranks, "topk": topk,
    }.items():  # fmt: skip
        pod[0][name] = value
    shapes = {
        "tokens_per_rank": (ranks,), "tokens_per_expert": (experts,), "channel_counts": (hosts, channels),
        "order": (tokens, ranks), "host_slot": (tokens, hosts),
    }  # fmt: skip
    arrays = {name: cupy.full(shape, -77, np.int32) for name, shape in shapes.items()}
    plan = np.zeros(1, abi.EP_PLAN)
    for name, array in arrays.items():
        plan[0][name] = array.data.ptr
    rank, topk_idx = cupy.asarray(pod.view(np.uint8)), cupy.asarray(chosen.topk_idx.astype(np.int32))
    gpu.stock_kernel("ep_layout")(blocks, 512, (rank, plan[0], topk_idx, tokens))
    got = {name: cupy.asnumpy(array) for name, array in arrays.items()}

    want = get_dispatch_layout(chosen.topk_idx, experts, ranks, gpus)
    assert np.array_equal(got["tokens_per_rank"], want.num_tokens_per_rank)
    assert np.array_equal(got["tokens_per_expert"], want.num_tokens_per_expert)
    there = want.is_token_in_rank
    assert np.array_equal(got["order"], np.where(there, np.cumsum(there, 0) - 1, -1))
    to_host = there.reshape(tokens, hosts, gpus).any(2)
    for c in range(channels):
        part = slice(tokens * c // channels, tokens * (c + 1) // channels)
        before = np.cumsum(to_host[part], 0) - to_host[part]
        assert np.array_equal(got["host_slot"][part], np.where(to_host[part], before, ~before))
        assert np.array_equal(got["channel_counts"][:, c], to_host[part].sum(0))


def test_wait_and_sum(seed):
    """A signal that is there already: acquire, warp sum, release store."""
    data = cupy.asarray(np.random.default_rng(seed).integers(0, 2**32, 10_000, dtype=np.uint32))
    words = cupy.asarray(np.array([5, 0], np.uint64))
    watch = np.zeros(1, WATCH)
    gpu.stock_kernel("wait_and_sum")(1, 64, (words, 5, data, data.size, words[1:], watch[0]))
    assert int(words[1]) == int(cupy.asnumpy(data).astype(np.uint64).sum())


def test_a_signal_that_never_comes_is_reported(seed):
    """The spin is bounded on a GPU too, and says who waited for what, at which line, to the host in its own memory."""
    words, data = cupy.zeros(2, np.uint64), cupy.zeros(4, np.uint32)
    report = gpu.pinned_report()
    watch = np.zeros(1, WATCH)
    watch[0]["report"], watch[0]["timeout_ns"], watch[0]["rank"] = report.address, 2_000_000, 3
    gpu.stock_kernel("wait_and_sum")(1, 32, (words, 9, data, 4, words[1:], watch[0]))
    deadline = time.monotonic() + 20
    while not report and time.monotonic() < deadline:  # nothing is synchronised
        time.sleep(0.001)
    assert report.status.name == "TIMEOUT" and report.expected == 9 and report.seen == 0 and report.rank == 3
    assert "signal" in report.what and report.line > 0 and report.file == "kernels/put_signal.cu"
    assert 2_000_000 <= report.waited_ns < 2_000_000_000
    with pytest.raises(HangError, match=r"put_signal\.cu"):
        report.raise_for_status()
    cupy.cuda.runtime.deviceSynchronize()


def test_an_edited_header_makes_another_kernel(tmp_path):
    header = tmp_path / "number.cuh"
    code = "#include <number.cuh>\n__global__ void tell(int* out) { *out = kNumber; }"
    out = cupy.zeros(1, np.int32)
    for number in (7, 8, 7):
        header.write_text(f"constexpr int kNumber = {number};\n")
        gpu.compile_source(code, include_dirs=[str(tmp_path)]).get_function("tell")(1, 1, (out,))
        assert int(out[0]) == number


def test_the_same_source_is_compiled_once():
    code = "#include <rdmakit/atom.cuh>\nRDMAKIT_KERNEL one(int* p) { *p = 1; }"
    assert gpu.compile_source(code) is gpu.compile_source(code)
    assert gpu.compile_source(code) is not gpu.compile_source(code, defines=["OTHER"])


SCALE = (
    "namespace a { __global__ void scale(float* p, float by, short n) { if (threadIdx.x < n) p[threadIdx.x] *= by; } }"
)


def test_streams_and_graphs():
    """On CuPy's stream, by its address, and captured into a graph that is launched three times."""
    scale = gpu.compile_source(SCALE).get_function("scale")
    values, stream = cupy.ones(32, np.float32), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.runtime.deviceSynchronize()
    scale(1, 32, (values, 2, 16), stream=stream)
    scale(1, 32, (values, 2.0, 16), stream=stream.ptr)
    stream.begin_capture()
    scale(1, 32, (values, np.float32(2), np.int16(16)), stream=stream)
    graph = stream.end_capture()
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert cupy.asnumpy(values).tolist() == [32.0] * 16 + [1.0] * 16


def test_what_a_gpu_refuses_is_told():
    scale = gpu.compile_source(SCALE).get_function("scale")
    values = cupy.ones(32, np.float32)
    with pytest.raises(LaunchError, match="refuses to launch scale"):
        scale(1, 2048, (values, 1.0, 1))
    with pytest.raises(LaunchError, match="refuses to launch scale"):
        scale(1, 32, (values, 1.0, 1), shared_mem=1 << 20)
    with pytest.raises(LaunchError, match="bad grid"):
        scale(0, 32, (values, 1.0, 1))
    with pytest.raises(LaunchError, match="no stream"):
        scale(1, 32, (values, 1.0, 1), stream="7")
    with pytest.raises(BadArgument, match="pointer of the device's"):
        scale(1, 32, (np.ones(32, np.float32), 1.0, 1))
    with pytest.raises(BadArgument, match="does not fit"):
        scale(1, 32, (values, 1.0, 1 << 15 << 1))
    with pytest.raises(BadArgument, match="no such kernel"):
        gpu.compile_source(SCALE).get_function("other")
    with pytest.raises(CompileError, match=r"wrong\.cu"):
        gpu.compile_source("\n__global__ void k() { no_such(); }", name="wrong.cu")
    scale(1, 32, (values, 3.0, 32))  # the device is as good as new
    assert float(values.sum()) == 96.0


def test_torch_tensors_and_streams():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch without CUDA")
    scale = gpu.compile_source(SCALE).get_function("scale")
    values, stream = torch.ones(32, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    scale(1, 32, (values, 4.0, 32), stream=stream)
    stream.synchronize()
    assert values.tolist() == [4.0] * 32
