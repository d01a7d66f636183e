"""All device code, every template instantiated, compiled by NVRTC to machine code, without GPU or driver.

To cubin, not PTX: PTX targets accept assembly that ptxas refuses.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTANTIATIONS = Path(__file__).with_name("instantiations.cu")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100a")
CPU_ONLY = {"cpu.cuh", "cpu_preempt.cuh", "cpu_watch.cuh", "cost.cuh", "cuda_builtins.cuh"}  # included only under g++

HEADERS = sorted(p for p in (ROOT / "cuda/rdmakit").glob("*.cuh") if p.name not in CPU_ONLY)
KERNELS = sorted((ROOT / "cuda/kernels").glob("*.cu"))
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
CPU_BRANCH = re.compile(r"^#if !RDMAKIT_GPU\n.*?^#endif", re.DOTALL | re.MULTILINE)
PRIVATE = re.compile(r"^  private:.*?^};", re.DOTALL | re.MULTILINE)
DEFINITION = re.compile(r"RDMAKIT_(?:DEVICE|NOINLINE)\b[^;{(]*?(\w+|operator\W{1,2})\(")


@pytest.fixture(scope="module")
def nvrtc():
    install = "pip install cuda-bindings nvidia-cuda-nvrtc (both in rdmakit[dev])"
    module = pytest.importorskip("cuda.bindings.nvrtc", reason=install)
    try:
        error, major, minor = module.nvrtcVersion()
    except RuntimeError as missing:  # the bindings load the library at the first call
        pytest.skip(f"no NVRTC library ({missing}): {install}")
    assert error == module.nvrtcResult.NVRTC_SUCCESS
    if (major, minor) < (12, 8):
        pytest.skip(f"NVRTC {major}.{minor} does not know sm_100a: {install}")
    return module


def compile_cubin(nvrtc, name: str, source: str, architecture: str) -> tuple[bytes, str]:
    """The machine code (empty if it does not compile) and what the compiler said: any word is a failure."""
    error, program = nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, error
    options = [f"--gpu-architecture={architecture}", "--std=c++17", f"--include-path={ROOT / 'cuda'}"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.rstrip(b"\0\n").decode()
    code = bytearray()
    if error == nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        code = bytearray(size)
        nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(code), said or str(error) * (not code)


def complaints(nvrtc, name: str, source: str) -> list[str]:
    """What NVRTC says on each architecture where it is not content."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda a: compile_cubin(nvrtc, name, source, a), ARCHITECTURES))
    pairs = zip(ARCHITECTURES, results, strict=True)
    return [f"{architecture}:\n{said}" for architecture, (code, said) in pairs if said or not code]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernel_compiles_to_cubin(nvrtc, kernel):
    found = complaints(nvrtc, kernel.name, kernel.read_text())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(nvrtc, header):
    """One architecture is enough here: nothing is instantiated, so nothing reaches ptxas."""
    _, said = compile_cubin(nvrtc, "alone.cu", f"#include <rdmakit/{header.name}>\n", "sm_90a")
    assert not said, said


def test_every_instantiation_compiles_to_cubin(nvrtc):
    found = complaints(nvrtc, INSTANTIATIONS.name, INSTANTIATIONS.read_text())
    assert not found, "\n".join(found)


def test_warnings_and_bad_assembly_are_errors(nvrtc):
    """The check can fail: on what NVRTC warns of, and on assembly that only ptxas refuses."""
    warned = "__global__ void k(int* p) { int unused = 1; *p = 0; }"
    refused = '__global__ void k(int* p) { asm volatile("st.nowhere.b32 [%0], 1;" :: "l"(p)); }'
    assert complaints(nvrtc, "warned.cu", warned)
    assert complaints(nvrtc, "refused.cu", refused)


# ---- the list is complete
def public_functions(header: str) -> set[str]:
    """Names of the device functions that a header defines for GPUs, private members left out."""
    code = PRIVATE.sub("", CPU_BRANCH.sub("", COMMENT.sub("", header)))
    code = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("#"))
    return set(DEFINITION.findall(code))


def uses(name: str, source: str) -> bool:
    if name.startswith("operator"):
        return f" {name.removeprefix('operator')} " in source
    return re.search(rf"\b{name}(?:<[^;]*?>)?(?: \w+)?\s*[({{]", source) is not None


def test_the_parser_of_definitions():
    header = """
    #define RDMAKIT_DEVICE __device__ __forceinline__
    template <class T> RDMAKIT_DEVICE constexpr T smaller(T a, T b) { return b < a ? b : a; }
    RDMAKIT_NOINLINE Status fail(const Watch& watch,
                                 Site site);
    // RDMAKIT_DEVICE void only_words() {}
    RDMAKIT_DEVICE const u8* ring_ds(const SendRing& ring) { return (ring.base); }
    RDMAKIT_DEVICE RemoteMemory operator+(const RemoteMemory& m, u64 bytes) { return m; }
    struct Tail {
        RDMAKIT_DEVICE u32 op_own() const { return raw >> 24; }
    };
#if !RDMAKIT_GPU
    RDMAKIT_DEVICE void host_only() {}
#endif
    """
    assert public_functions(header) == {"smaller", "fail", "ring_ds", "operator+", "op_own"}


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_every_public_function_is_instantiated(header):
    listed = COMMENT.sub("", INSTANTIATIONS.read_text())
    missing = {name for name in public_functions(header.read_text()) if not uses(name, listed)}
    assert not missing, f"add a use of {sorted(missing)} ({header.name}) to {INSTANTIATIONS.name}"


def test_every_header_is_included():
    listed = INSTANTIATIONS.read_text()
    assert [h.name for h in HEADERS if f"<rdmakit/{h.name}>" not in listed] == []
