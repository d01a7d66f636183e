"""The very files that the emulator runs, on a GPU: compiled by NVRTC through CuPy, their results against NumPy.

What needs a NIC below the doorbell waits for an HCA that GPUs can ring; here run the kernels that need none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rdmakit
from rdmakit.device import LAYOUT_VERSION
from rdmakit.ep import abi, routing
from rdmakit.ep.layout import get_dispatch_layout

cupy = pytest.importorskip("cupy", reason="CuPy is not installed (pip install cupy-cuda13x)")

pytestmark = pytest.mark.gpu
KERNELS = sorted((Path(rdmakit.get_include()) / "kernels").glob("*.cu"))


@pytest.fixture(scope="module", autouse=True)
def device():
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            pytest.skip("no CUDA device")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no CUDA device: {error}")


def module(path):
    options = ("-std=c++17", "-I" + rdmakit.get_include())
    return cupy.RawModule(code=path.read_text(), options=options, backend="nvrtc")


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_loads_on_this_device(path):
    """Compiled for the device at hand, and loaded by its driver."""
    compiled = module(path)
    compiled.compile()
    for line in path.read_text().splitlines():
        if line.startswith("RDMAKIT_KERNEL "):
            assert compiled.get_function(line.split()[1].split("(")[0]) is not None


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
    source = next(p for p in KERNELS if p.stem == "ep_layout")
    kernel = module(source).get_function("ep_layout")
    rank = cupy.asarray(pod.view(np.uint8))
    kernel((blocks,), (512,), (rank, plan[0], cupy.asarray(chosen.topk_idx.astype(np.int32)), np.uint32(tokens)))
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
    source = next(p for p in KERNELS if p.stem == "put_signal")
    from rdmakit.device.handle import WATCH

    watch = np.zeros(1, WATCH)
    kernel = module(source).get_function("wait_and_sum")
    kernel((1,), (64,), (words, np.uint64(5), data, np.uint32(data.size), words[1:], watch[0]))
    assert int(words[1]) == int(cupy.asnumpy(data).astype(np.uint64).sum())


def test_a_signal_that_never_comes_is_reported(seed):
    """The spin is bounded on a GPU too, and says who waited for what, at which line."""
    from rdmakit.device.handle import WATCH
    from rdmakit.device.report import REPORT, Report

    words = cupy.zeros(2, np.uint64)
    report = cupy.zeros(REPORT.itemsize, np.uint8)
    watch = np.zeros(1, WATCH)
    watch[0]["report"], watch[0]["timeout_ns"], watch[0]["rank"] = report.data.ptr, 2_000_000, 3
    source = next(p for p in KERNELS if p.stem == "put_signal")
    data = cupy.zeros(4, np.uint32)
    kernel = module(source).get_function("wait_and_sum")
    kernel((1,), (32,), (words, np.uint64(9), data, np.uint32(4), words[1:], watch[0]))
    said = Report(cupy.asnumpy(report))
    assert said.status.name == "TIMEOUT" and said.expected == 9 and said.seen == 0 and said.rank == 3
    assert "signal" in said.what and said.line > 0 and ".cu" in said.file
    assert 2_000_000 <= said.waited_ns < 2_000_000_000
