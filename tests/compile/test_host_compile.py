"""All device code and the runner, compiled by g++ with every warning an error.

Device code in each policy (Fast, Timed, Explore) and each width of an instruction stream (a warp as one
fibre, or a fibre a thread). Stock kernels run a warp as one fibre: of the other width the front end has its say, and
instantiations.cu is compiled thoroughly in every way.
"""

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

pytest_plugins = ("verdicts",)
ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no {CXX}: apt-get install g++")

FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
QUICK = ["-fsyntax-only"]
THOROUGH = ["-O1", "-S", "-o", "/dev/null"]  # some warnings come only after the front end
WAYS = [f"-DRDMAKIT_POLICY={policy} -DRDMAKIT_LANES={lanes}" for policy, lanes in product((0, 1, 2), (1, 32))]
HEADERS = sorted((ROOT / "cuda/rdmakit").glob("*.cuh"))
KERNELS = sorted((ROOT / "cuda/kernels").glob("*.cu"))
INSTANTIATIONS = Path(__file__).with_name("instantiations.cu")
RUNNER = sorted((ROOT / "rdmakit/emu").rglob("*.[ch]pp"))


@functools.cache
def version() -> str:
    return subprocess.run([CXX, "--version"], capture_output=True, text=True).stdout


def complaint(verdicts, source: str, options: list[str]) -> str:
    """What g++ says of a source text: nothing if it is content."""
    command = [CXX, *FLAGS, f"-I{ROOT / 'cuda'}", *options, "-"]
    folders = [Path(option[2:]) for option in command if option.startswith("-I")]

    def compiler() -> str:
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        return done.stderr or f"exit status {done.returncode}" * (done.returncode != 0)

    return verdicts.complaint(source, folders, f"{version()} {' '.join(command)}", compiler)


def complaints(verdicts, source: str, depth: list[str], other_depth: list[str] | None = None) -> list[str]:
    """What g++ says in each way; `other_depth`: where a fibre is a thread."""
    depths = {"1": depth, "32": other_depth or depth}
    asked = [[*depths[way.rpartition("=")[2]], *way.split()] for way in WAYS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda options: complaint(verdicts, source, options), asked))
    return [f"{way}:\n{said}" for way, said in zip(WAYS, results, strict=True) if said]


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(verdicts, header):
    name = (
        "config.cuh" if header.name == "cpu.cuh" else header.name
    )  # which includes cpu.cuh half-way through
    # Policy and width change no include, and instantiations.cu has all headers in every way: the first and the last do.
    for way in (WAYS[0], WAYS[-1]):
        said = complaint(verdicts, f"#include <rdmakit/{name}>\n", [*QUICK, *way.split()])
        assert not said, f"{way}:\n{said}"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernel_compiles(verdicts, kernel):
    found = complaints(verdicts, kernel.read_text(), THOROUGH, QUICK)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("way", WAYS)
def test_every_instantiation_compiles(verdicts, way):
    said = complaint(verdicts, INSTANTIATIONS.read_text(), [*THOROUGH, *way.split()])
    assert not said, said


@pytest.mark.parametrize("source", RUNNER, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runner_compiles(verdicts, source):
    include = [f"-I{ROOT / folder}" for folder in ("rdmakit/emu", "rdmakit/emu/run")]
    said = complaint(verdicts, f'#include "{source}"\n', [*QUICK, *include])
    assert not said, said


def test_warnings_are_errors(verdicts):
    unused = "#include <rdmakit/config.cuh>\nint f(int unused) { return rdmakit::kLanes; }\n"
    assert len(complaints(verdicts, unused, QUICK)) == len(WAYS)
    assert complaint(verdicts, "static void never() {}\n", THOROUGH)
    assert not complaint(verdicts, "int main() {}\n", THOROUGH)
