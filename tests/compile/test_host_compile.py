"""All device code and the runner, compiled by g++ with every warning an error.

Device code in each policy (Fast, Timed, Explore) and each width of an instruction stream (a warp as one
fibre, or a fibre a thread).
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no {CXX}: apt-get install g++")

FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
QUICK = ["-fsyntax-only"]
THOROUGH = ["-O1", "-S", "-o", "/dev/null"]  # some warnings come only after the front end
WAYS = [f"-DRDMAKIT_POLICY={policy} -DRDMAKIT_LANES={lanes}" for policy, lanes in product((0, 1, 2), (1, 32))]
HEADERS = sorted((ROOT / "cuda/rdmakit").glob("*.cuh"))
KERNELS = [*sorted((ROOT / "cuda/kernels").glob("*.cu")), Path(__file__).with_name("instantiations.cu")]
RUNNER = sorted((ROOT / "rdmakit/emu").rglob("*.[ch]pp"))


def complaint(source: str, options: list[str]) -> str:
    """What g++ says of a source text: nothing if it is content."""
    command = [CXX, *FLAGS, f"-I{ROOT / 'cuda'}", *options, "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    return done.stderr or f"exit status {done.returncode}" * (done.returncode != 0)


def complaints(source: str, depth: list[str]) -> list[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda way: complaint(source, [*depth, *way.split()]), WAYS))
    return [f"{way}:\n{said}" for way, said in zip(WAYS, results, strict=True) if said]


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(header):
    name = (
        "config.cuh" if header.name == "cpu.cuh" else header.name
    )  # which includes cpu.cuh half-way through
    found = complaints(f"#include <rdmakit/{name}>\n", QUICK)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernel_compiles(kernel):
    found = complaints(kernel.read_text(), THOROUGH)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", RUNNER, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runner_compiles(source):
    include = [f"-I{ROOT / folder}" for folder in ("rdmakit/emu", "rdmakit/emu/run")]
    said = complaint(f'#include "{source}"\n', [*QUICK, *include])
    assert not said, said


def test_warnings_are_errors():
    unused = "#include <rdmakit/config.cuh>\nint f(int unused) { return rdmakit::kLanes; }\n"
    assert len(complaints(unused, QUICK)) == len(WAYS)
    assert complaint("static void never() {}\n", THOROUGH)
    assert not complaint("int main() {}\n", THOROUGH)
