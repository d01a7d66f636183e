"""The emulated HCA by itself: compiles tests/native with g++, plain and under sanitizers, and runs it.

The C++ tests are the specification of rdmakit/emu/hca and of cuda/rdmakit/hca*.cuh: every opcode, every
syndrome, the state machine, rings and doorbells, ports, time, and a fuzzer whose seeds replay
(`hca_tests --fuzz SEED 1`).
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "rdmakit" / "emu"
NATIVE = ROOT / "tests" / "native"
BUILDS = {
    "plain": ["-O1"],
    "sanitized": ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
FUZZED_WORLDS = {"plain": 30_000, "sanitized": 10_000}


@pytest.fixture(scope="module", params=list(BUILDS))
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of the build and its binary. One translation unit compiles in a third of the time."""
    folder = tmp_path_factory.mktemp(request.param)
    unit, binary = folder / "unit.cpp", folder / "hca_tests"
    model = [*EMULATOR.glob("hca/*.cpp"), EMULATOR / "explore" / "weak_memory.cpp"]
    sources = sorted(model) + sorted(NATIVE.glob("*.cpp"))
    unit.write_text("".join(f'#include "{source}"\n' for source in sources))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", *BUILDS[request.param], f"-I{ROOT / 'cuda'}"]
    done = subprocess.run(["g++", *flags, str(unit), "-o", str(binary)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, binary


def run(binary: Path, *arguments: str) -> str:
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    command = [str(binary), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_specification(build: tuple[str, Path]) -> None:
    assert ", 0 failures" in run(build[1])


def test_fuzz(build: tuple[str, Path], seed: int) -> None:
    name, binary = build
    assert ", 0 failures" in run(binary, "--fuzz", str(seed), str(FUZZED_WORLDS[name]))
