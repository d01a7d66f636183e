"""The PODs of the MoE kernels lie in memory as Python thinks: sizes and offsets, as g++ sees them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import rdmakit
from rdmakit.ep import abi

STRUCTS = {
    "RemoteMemory": abi.REMOTE_MEMORY,
    "ChannelHandle": abi.CHANNEL_HANDLE,
    "EpHeap": abi.EP_HEAP,
    "EpRank": abi.EP_RANK,
    "EpPlan": abi.EP_PLAN,
    "DispatchInput": abi.DISPATCH_INPUT,
    "CombineInput": abi.COMBINE_INPUT,
    "LlHeap": abi.LL_HEAP,
    "LlRank": abi.LL_RANK,
    "LlReceived": abi.LL_RECEIVED,
}


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (apt install g++)")
    lines = []
    for name, dtype in STRUCTS.items():
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {f} %zu\\n", offsetof({name}, {f}));' for f in dtype.names]
    source = tmp_path_factory.mktemp("abi") / "abi.cpp"
    source.write_text(
        "#include <cstdio>\n#include <kernels/ep_dispatch.cu>\n#include <kernels/ep_combine.cu>\n"
        "#include <kernels/ll_dispatch.cu>\nusing namespace rdmakit;\nint main() {\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    program = source.with_suffix("")
    subprocess.run(["g++", "-std=c++17", "-I", rdmakit.get_include(), source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {(s, f): int(n) for s, f, n in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_offsets(layout, name):
    dtype = STRUCTS[name]
    ours = {field: dtype.fields[field][1] for field in dtype.names} | {"-": dtype.itemsize}
    assert ours == {field: n for (struct, field), n in layout.items() if struct == name}


def test_limits_are_the_headers():
    text = (Path(rdmakit.get_include()) / "rdmakit" / "ep.cuh").read_text()
    assert f"kMaxHosts = {abi.MAX_HOSTS};" in text and f"kMaxLocalRanks = {abi.MAX_LOCAL_RANKS};" in text
