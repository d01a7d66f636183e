"""All device code, every template instantiated, compiled by NVRTC to machine code, without GPU or driver.

To cubin, not PTX: PTX targets accept assembly that ptxas refuses. The atom layer, in which every line of assembly is,
is compiled for each architecture; all else for one of those that see the same text of it. `make explore` takes all.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from verdicts import Verdicts

from rdmakit.gpu.headers import headers_of

pytest_plugins = ("verdicts",)
ROOT = Path(__file__).resolve().parents[2]
INSTANTIATIONS = Path(__file__).with_name("instantiations.cu")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100a")
ALONE = "ATOM_LAYER_ALONE"  # instantiations.cu
# Included only under g++.
CPU_ONLY = {"cpu.cuh", "cpu_dma.cuh", "cpu_preempt.cuh", "cpu_watch.cuh", "cost.cuh", "cuda_builtins.cuh"}

HEADERS = sorted(p for p in (ROOT / "cuda/rdmakit").glob("*.cuh") if p.name not in CPU_ONLY)
KERNELS = sorted((ROOT / "cuda/kernels").glob("*.cu"))
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
CPU_BRANCH = re.compile(r"^#if !RDMAKIT_GPU\n.*?^#endif", re.DOTALL | re.MULTILINE)
PRIVATE = re.compile(r"^  private:.*?^};", re.DOTALL | re.MULTILINE)
BRANCH = re.compile(r"__CUDA_ARCH__ >= (\d+)")
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


def architectures_of(source: str) -> tuple[str, ...]:
    """The least of each group of architectures for which `source` and its headers are the same text.

    All of them where the text asks for the architecture in any other way than by `__CUDA_ARCH__ >= N`.
    """
    texts = [source, *(content.decode() for content in headers_of(source, [ROOT / "cuda"]).values())]
    code = COMMENT.sub("", "\n".join(texts)).replace("defined(__CUDA_ARCH__)", "")
    bounds = sorted({int(bound) for bound in BRANCH.findall(code)})
    if len(BRANCH.findall(code)) != code.count("__CUDA_ARCH__"):
        return ARCHITECTURES
    least: dict[tuple[bool, ...], str] = {}
    for architecture in ARCHITECTURES:
        number = 10 * int(re.sub(r"\D", "", architecture))
        least.setdefault(tuple(number >= bound for bound in bounds), architecture)
    return tuple(least.values())


def complaints(nvrtc, verdicts, name: str, source: str, architectures: tuple[str, ...]) -> list[str]:
    """What NVRTC says on each architecture where it is not content."""
    version = nvrtc.nvrtcVersion()

    def one(architecture: str) -> str:
        def compiler() -> str:
            code, said = compile_cubin(nvrtc, name, source, architecture)
            return said or "no machine code" * (not code)

        return verdicts.complaint(source, [ROOT / "cuda"], f"NVRTC {version} {architecture}", compiler)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(one, architectures))
    return [f"{architecture}:\n{said}" for architecture, said in zip(architectures, results, strict=True) if said]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernel_compiles_to_cubin(nvrtc, verdicts, kernel):
    source = kernel.read_text()
    found = complaints(nvrtc, verdicts, kernel.name, source, architectures_of(source))
    assert not found, "\n".join(found)


@pytest.mark.explore
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_kernel_compiles_to_cubin_for_every_architecture(nvrtc, verdicts, kernel):
    found = complaints(nvrtc, verdicts, kernel.name, kernel.read_text(), ARCHITECTURES)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(nvrtc, verdicts, header):
    """One architecture is enough here: nothing is instantiated, so nothing reaches ptxas."""
    found = complaints(nvrtc, verdicts, "alone.cu", f"#include <rdmakit/{header.name}>\n", ("sm_90a",))
    assert not found, found[0]


LEAST = architectures_of(INSTANTIATIONS.read_text())


@pytest.mark.parametrize(
    "architecture", [a if a in LEAST else pytest.param(a, marks=pytest.mark.explore) for a in ARCHITECTURES]
)
def test_every_instantiation_compiles_to_cubin(nvrtc, verdicts, architecture):
    found = complaints(nvrtc, verdicts, INSTANTIATIONS.name, INSTANTIATIONS.read_text(), (architecture,))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_line_of_assembly_compiles_to_cubin(nvrtc, verdicts, architecture):
    alone = f"#define {ALONE}\n{INSTANTIATIONS.read_text()}"
    found = complaints(nvrtc, verdicts, INSTANTIATIONS.name, alone, (architecture,))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["atom.cuh", "atom_bulk.cuh"])
def test_the_atom_layer_is_instantiated_alone(name):
    """Of test_dependencies: no other header has assembly."""
    listed = COMMENT.sub("", INSTANTIATIONS.read_text()).partition(f"#ifndef {ALONE}")[0]
    assert not {f for f in public_functions((ROOT / "cuda/rdmakit" / name).read_text()) if not uses(f, listed)}


def test_warnings_and_bad_assembly_are_errors(nvrtc, verdicts):
    """The check can fail, and again: on what NVRTC warns of, and on assembly that only ptxas refuses."""
    warned = "__global__ void k(int* p) { int unused = 1; *p = 0; }"
    refused = '__global__ void k(int* p) { asm volatile("st.nowhere.b32 [%0], 1;" :: "l"(p)); }'
    for _ in range(2):
        assert len(complaints(nvrtc, verdicts, "warned.cu", warned, ARCHITECTURES)) == len(ARCHITECTURES)
        assert len(complaints(nvrtc, verdicts, "refused.cu", refused, ARCHITECTURES)) == len(ARCHITECTURES)


def test_architectures_that_see_another_text_are_compiled_for():
    assert architectures_of("int a;") == ("sm_75",)
    assert architectures_of("#include <rdmakit/bulk.cuh>\n") == ("sm_75", "sm_90a")
    assert architectures_of("#if __CUDA_ARCH__ >= 800 // __CUDA_ARCH__\n#endif") == ("sm_75", "sm_80")
    assert architectures_of("#if __CUDA_ARCH__ == 1000\n#endif") == ARCHITECTURES


def test_a_verdict_is_of_one_text_and_of_contentment_alone(tmp_path):
    """Compiled once for each content, header and option; what is not content, every time."""
    (tmp_path / "verdicts").mkdir()
    known, header, calls = Verdicts(tmp_path / "verdicts"), tmp_path / "a.cuh", []

    def ask(source: str, how: str, said: str = "") -> str:
        return known.complaint(source, [tmp_path], how, lambda: calls.append(how) or said)

    header.write_text("int a;")
    include = "#include <a.cuh>\n"
    assert [ask(include, how) for how in ("g++", "g++", "NVRTC")] == ["", "", ""] and calls == ["g++", "NVRTC"]
    header.write_text("int b;")
    ask(include, "g++")
    assert len(calls) == 3
    assert ask("x", "g++", "no") == ask("x", "g++", "no") == "no" and len(calls) == 5


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
