"""The PODs of the MoE kernels lie in memory as Python thinks: sizes and offsets, as g++ sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import rdmakit
from rdmakit.ep import abi, nvl_abi, nvlink

NVLINK = {
    "NvlProgress": nvl_abi.PROGRESS,
    "NvlOffer": nvl_abi.OFFER,
    "NvlHeap": nvl_abi.HEAP,
    "NvlRank": nvl_abi.RANK,
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
    ("nvl_layout", "nvl_notify", "nvl_dispatch", "nvl_ll_dispatch", "nvl_ll_combine"): NVLINK,
    ("nvl_combine",): NVLINK_COMBINE,
}


@pytest.mark.parametrize("kernels", ALL, ids=lambda names: names[0])
def test_offsets(kernels, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (apt install g++)")
    lines = []
    for name, dtype in ALL[kernels].items():
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {f} %zu\\n", offsetof({name}, {f}));' for f in dtype.names]
    source = tmp_path / "abi.cpp"
    includes = "".join(f"#include <kernels/{kernel}.cu>\n" for kernel in kernels)
    source.write_text(
        f"#include <cstdio>\n{includes}using namespace rdmakit;\nint main() {{\n" + "\n".join(lines) + "\n}\n"
    )
    program = source.with_suffix("")
    subprocess.run(["g++", "-std=c++17", "-I", rdmakit.get_include(), source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    seen = {(s, f): int(n) for s, f, n in (line.split() for line in printed.splitlines())}
    for name, dtype in ALL[kernels].items():
        ours = {field: dtype.fields[field][1] for field in dtype.names} | {"-": dtype.itemsize}
        assert ours == {field: n for (struct, field), n in seen.items() if struct == name}, name


def test_limits_are_the_headers():
    text = (Path(rdmakit.get_include()) / "rdmakit" / "ep.cuh").read_text()
    assert f"kMaxHosts = {abi.MAX_HOSTS};" in text and f"kMaxLocalRanks = {abi.MAX_LOCAL_RANKS};" in text
    text = (Path(rdmakit.get_include()) / "rdmakit" / "nvl.cuh").read_text()
    assert f"kMaxNvlRanks = {nvl_abi.MAX_RANKS};" in text and f"kMaxTopk = {nvl_abi.MAX_TOPK};" in text
    assert f"kNvlWarpBytes = {nvl_abi.WARP_BYTES};" in text and text.count(f"kNvlWarps = {nvl_abi.MAX_WARPS};") == 1
    kinds = text[text.index("enum class NvlKind") : text.index("count };")].count(",")
    assert kinds == nvl_abi.KINDS
    for kernel, constant, value in (("dispatch", "kNvlSlots", nvlink.SLOTS), ("combine", "kNvlStages", nvlink.STAGES)):
        source = (Path(rdmakit.get_include()) / "kernels" / f"nvl_{kernel}.cu").read_text()
        assert f"{constant} = {value};" in source
