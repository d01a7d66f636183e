"""The PODs of the MoE kernels lie in memory as Python thinks: sizes and offsets, as g++ sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import rdmakit
from rdmakit.ep import abi, nvl_abi, nvl_low_latency, nvlink

NVLINK = {
    "NvlProgress": nvl_abi.PROGRESS,
    "NvlOffer": nvl_abi.OFFER,
    "NvlHeap": nvl_abi.HEAP,
    "NvlRank": nvl_abi.RANK,
    "NvlMasks": nvl_abi.MASKS,
    "NvlMaskInput": nvl_abi.MASK_INPUT,
    "NvlLayoutInput": nvl_abi.LAYOUT_INPUT,
    "NvlNotifyInput": nvl_abi.NOTIFY_INPUT,
    "NvlDispatchInput": nvl_abi.DISPATCH_INPUT,
    "NvlLlHeap": nvl_abi.LL_HEAP,
    "NvlLl": nvl_abi.LL,
    "NvlLlDispatchInput": nvl_abi.LL_DISPATCH_INPUT,
    "NvlLlCombineInput": nvl_abi.LL_COMBINE_INPUT,
}
# Its file has names that the dispatch kernel's has, too.
NVLINK_COMBINE = {"NvlCombineInput": nvl_abi.COMBINE_INPUT}
STRUCTS = {
    "RemoteMemory": abi.REMOTE_MEMORY,
    "ChannelHandle": abi.CHANNEL_HANDLE,
    "EpHeap": abi.EP_HEAP,
    "EpRank": abi.EP_RANK,
    "EpPlan": abi.EP_PLAN,
    "DispatchInput": abi.DISPATCH_INPUT,
    "CombineInput": abi.COMBINE_INPUT,
    "CountInput": abi.COUNT_INPUT,
    "TellOutput": abi.TELL_OUTPUT,
    "CollectOutput": abi.COLLECT_OUTPUT,
    "LlHeap": abi.LL_HEAP,
    "LlRank": abi.LL_RANK,
    "LlReceived": abi.LL_RECEIVED,
}


ALL = {
    ("ep_dispatch", "ep_combine", "ep_route", "ep_tell", "ep_collect", "ll_dispatch"): STRUCTS,
    ("nvl_layout", "nvl_notify", "nvl_dispatch", "nvl_ll_dispatch", "nvl_ll_combine", "nvl_mask"): NVLINK,
    ("nvl_combine",): NVLINK_COMBINE,
}


def printed(tmp_path, kernels, lines):
    """What statements print where these kernels are included."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (apt install g++)")
    source = tmp_path / "abi.cpp"
    includes = "".join(f"#include <kernels/{kernel}.cu>\n" for kernel in kernels)
    source.write_text(
        f"#include <cstdio>\n{includes}using namespace rdmakit;\nint main() {{\n" + "\n".join(lines) + "\n}\n"
    )
    program = source.with_suffix("")
    subprocess.run(["g++", "-std=c++17", "-I", rdmakit.get_include(), source, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("kernels", ALL, ids=lambda names: names[0])
def test_offsets(kernels, tmp_path):
    lines = []
    for name, dtype in ALL[kernels].items():
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {f} %zu\\n", offsetof({name}, {f}));' for f in dtype.names]
    seen = {(s, f): int(n) for s, f, n in (line.split() for line in printed(tmp_path, kernels, lines))}
    for name, dtype in ALL[kernels].items():
        ours = {field: dtype.fields[field][1] for field in dtype.names} | {"-": dtype.itemsize}
        assert ours == {field: n for (struct, field), n in seen.items() if struct == name}, name


def test_shared_memory_of_low_latency_dispatch_is_the_kernels(tmp_path, rng):
    """What a launch asks for is what the kernel divides: its last part ends where it says."""
    shapes = rng.integers((1, 1, 1, 1), (513, 9, 300, 65), (200, 4)) * (1, 1, 1, 128)
    shapes = [tuple(map(int, shape)) for shape in shapes]
    lines = [f'printf("%u\\n", nvl_ll_shared_bytes({", ".join(map(str, shape))}));' for shape in shapes]
    lines += [f"{{ NvlLl p = {{}}; p.nvl.ranks = {r}; p.experts = {local * r}; p.hidden = {hidden}; "
              f"const auto mine = nvl_ll_counters(p, nullptr, {blocks}); "
              f'printf("%zu\\n", reinterpret_cast<size_t>(mine.largest + {hidden // 8})); }}'
              for local, r, blocks, hidden in shapes]  # fmt: skip
    asked = [nvl_low_latency.shared_bytes(*shape) for shape in shapes]
    found = list(map(int, printed(tmp_path, ["nvl_ll_dispatch"], lines)))
    assert found == asked + asked


def test_limits_are_the_headers():
    text = (Path(rdmakit.get_include()) / "rdmakit" / "ep.cuh").read_text()
    assert f"kMaxHosts = {abi.MAX_HOSTS};" in text and f"kMaxLocalRanks = {abi.MAX_LOCAL_RANKS};" in text
    text = (Path(rdmakit.get_include()) / "rdmakit" / "nvl.cuh").read_text()
    assert f"kMaxNvlRanks = {nvl_abi.MAX_RANKS};" in text and f"kMaxTopk = {nvl_abi.MAX_TOPK};" in text
    assert f"kNvlWarpBytes = {nvl_abi.WARP_BYTES};" in text and text.count(f"kNvlWarps = {nvl_abi.MAX_WARPS};") == 1
    kinds = text[text.index("enum class NvlKind") : text.index("count };")].count(",")
    assert kinds == nvl_abi.KINDS
    text = (Path(rdmakit.get_include()) / "rdmakit" / "nvl_mask.cuh").read_text()
    about = text[text.index("enum class NvlVerdict") : text.index("count };")]
    assert about.count(",") == nvl_abi.VERDICTS
    for kernel, constant, value in (("dispatch", "kNvlSlots", nvlink.SLOTS), ("combine", "kNvlStages", nvlink.STAGES)):
        source = (Path(rdmakit.get_include()) / "kernels" / f"nvl_{kernel}.cu").read_text()
        assert f"{constant} = {value};" in source
