"""What rdmakit.gpu does before a GPU is needed: keys of sources and headers, arguments as bytes, clear refusals."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rdmakit
from rdmakit import gpu
from rdmakit.device import RemoteMemory
from rdmakit.device.arguments import FLOAT, POINTER, VALUE, kind_of
from rdmakit.device.source import find_kernels, parameters
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.gpu.arguments import pack_for

INCLUDE = Path(rdmakit.get_include())


def pack(kernel, parameters, sizes, values):
    return pack_for(kernel, parameters, sizes, values)[0]


def test_the_key_changes_with_every_header_and_only_then(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "deep/b.cuh"\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.cuh").write_text('#include "c.cuh"  // beside it\n#include <cuda_fp16.h>\n')
    (tmp_path / "deep/c.cuh").write_text("#pragma once\nconstexpr int kOne = 1;\n")
    (tmp_path / "other.cuh").write_text("")
    code = "#include <a.cuh>\n// #include <other.cuh>\n/*\n#include <other.cuh>\n*/\n__global__ void k() {}\n"
    assert {path.name for path in gpu.headers_of(code, [tmp_path])} == {"a.cuh", "b.cuh", "c.cuh"}
    keys = {gpu.source_key(code, [tmp_path])}
    for path in ("a.cuh", "deep/b.cuh", "deep/c.cuh"):
        with (tmp_path / path).open("a") as file:
            file.write("// changed\n")
        keys.add(gpu.source_key(code, [tmp_path]))
    assert len(keys) == 4
    (tmp_path / "other.cuh").write_text("// changed")
    assert gpu.source_key(code, [tmp_path]) in keys
    assert gpu.source_key(code + " ", [tmp_path]) not in keys


def test_headers_that_include_one_another_end(tmp_path):
    (tmp_path / "a.cuh").write_text("#include <b.cuh>\n")
    (tmp_path / "b.cuh").write_text("#include <a.cuh>\n")
    assert len(gpu.headers_of("#include <a.cuh>", [tmp_path])) == 2


@pytest.mark.parametrize("path", sorted((INCLUDE / "kernels").glob("*.cu")), ids=lambda p: p.stem)
def test_every_header_of_ours_is_found(path):
    """Against what g++ opens."""
    command = ["g++", "-std=c++17", "-MM", "-x", "c++", f"-I{INCLUDE}", str(path)]
    opened = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    wanted = {Path(name).resolve() for name in opened.replace("\\\n", " ").split() if name.endswith(".cuh")}
    assert wanted and wanted <= set(gpu.headers_of(path.read_text(encoding="utf-8"), [INCLUDE]))


@pytest.mark.parametrize("path", sorted((INCLUDE / "kernels").glob("*.cu")), ids=lambda p: p.stem)
def test_parameters_are_those_that_the_cpu_runner_knows(path):
    code = path.read_text(encoding="utf-8")
    for kernel, _ in find_kernels(code):
        texts = parameters(code, kernel)
        types = rdmakit.World().stock_kernel(kernel).types
        kinds = [kind if kind in (POINTER, FLOAT) else VALUE for kind, _ in types]
        assert [kind_of(text) for text in texts] == kinds


def test_parameters_of_odd_forms():
    code = """
    template <class T> __global__ void k(T* p) {}
    __global__ void __launch_bounds__(32) k(Pair<int, float*> a, void (*f)(int, int), int b[3] /* , no */) {}
    RDMAKIT_KERNEL none(void) {}
    """
    assert parameters(code, "k") == ("Pair<int, float*> a", "void (*f)(int, int)", "int b[3]")
    assert parameters(code, "none") == ()
    with pytest.raises(KeyError):
        parameters(code, "other")


class Array:
    """As torch's and CuPy's arrays show themselves."""

    def __init__(self, shape, strides=None, address=0x7F00):
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": "<f4", "data": (address, False), "version": 3,
        }  # fmt: skip


def test_values_become_bytes_of_their_parameters():
    record = np.zeros((), [("a", "<u8"), ("b", "<u4")])[()]
    texts = ["int* p", "const float* q", "u64 n", "u16 small", "float x", "double y", "RemoteMemory to", "Record r"]
    sizes = [8, 8, 8, 2, 4, 8, 16, 12]
    values = [Array((4,)), None, 1 << 63, -1, np.float32(0.5), 1, RemoteMemory(0x1000, 7, 64), record]
    packed = [bytes(one) for one in pack("k", texts, sizes, values)]
    assert [len(one) for one in packed] == sizes
    assert packed[0] == (0x7F00).to_bytes(8, "little") and packed[1] == bytes(8)
    assert packed[3] == b"\xff\xff" and packed[4] == np.float32(0.5).tobytes() and packed[5] == np.float64(1).tobytes()


@given(st.integers(-(1 << 70), 1 << 70), st.sampled_from([1, 2, 4, 8]))
def test_integers_fit_or_are_refused(value, nbytes):
    bits = 8 * nbytes
    if -(1 << bits - 1) <= value < 1 << bits:
        (packed,) = pack("k", ["T n"], [nbytes], [value])
        assert int.from_bytes(bytes(packed), "little") == value % (1 << bits)
    else:
        with pytest.raises(BadArgument, match=r"argument 0 of k \(T n\) does not fit"):
            pack("k", ["T n"], [nbytes], [value])


@pytest.mark.parametrize(
    ("text", "size", "value", "said"),
    [
        ("int* p", 8, np.zeros(3), "pointer of the device's.*cupy.asarray"),
        ("int* p", 8, [1, 2], "pointer of the device's"),
        ("int* p", 8, -1, "pointer of the device's"),
        ("int* p", 8, True, "pointer of the device's"),
        ("float* p", 8, Array((4, 4), (32, 4)), "with gaps.*C-contiguous"),
        ("int n", 4, 1.5, "must be an integer"),
        ("int n", 4, "7", "must be an integer"),
        ("float x", 4, "7", "must be a float"),
        ("float x", 4, 1e300, "does not fit"),
        ("Watch w", 24, 7, "must be a struct of 24 bytes"),
        ("Watch w", 24, b"1234", "another size.*24 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(text, size, value, said):
    with pytest.raises(BadArgument, match=re.compile(f"argument 1 of k.*{said}", re.DOTALL)):
        pack("k", ["int n", text], [4, size], [0, value])


def test_the_number_of_arguments_is_checked():
    with pytest.raises(BadArgument, match="takes 2 arguments"):
        pack("k", ["int n", "int m"], [4, 4], [1])
    with pytest.raises(BadArgument, match="arguments of k"):
        pack("k", ["int n"], [4], "7")


@pytest.mark.parametrize(("shape", "strides"), [((4, 4), (16, 4)), ((1, 4), (99, 4)), ((0, 4), (1, 1)), ((4,), None)])
def test_contiguous_arrays_pass_whatever_their_strides_say(shape, strides):
    assert bytes(pack("k", ["float* p"], [8], [Array(shape, strides)])[0])


def test_without_a_gpu_it_says_what_is_missing():
    try:
        import cupy

        if cupy.cuda.is_available():
            pytest.skip("there is a GPU: tests/gpu")
    except ImportError:
        pass
    with pytest.raises(NotAvailable, match="World"):
        gpu.compile_source("RDMAKIT_KERNEL k(int* p) { *p = 1; }")
    with pytest.raises(NotAvailable, match="World"):
        gpu.pinned_report()
    with pytest.raises(NotAvailable, match="World"):
        gpu.World(hosts=2)
    with pytest.raises(BadArgument, match="cuda/kernels has"):
        gpu.stock_kernel("no_such")
