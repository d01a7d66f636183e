"""Compiling device code: what is found in a source, the cache by content, stock kernels, errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rdmakit
from rdmakit.device.source import blanked, find_kernels
from rdmakit.emu import cache, compile, compile_source, compiler, stock_kernel
from rdmakit.emu.source import prepare
from rdmakit.errors import BadArgument, CompileError, NotAvailable

ONE = "#include <rdmakit/warp.cuh>\nRDMAKIT_KERNEL one(int* p) { if (rdmakit::block_rank() == 0) p[0] = VALUE; }\n"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache of our own, and nothing loaded."""
    monkeypatch.setenv("RDMAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compile, "_loaded", {})
    return tmp_path / "cache"


def value_of(module, world=None):
    world = world or rdmakit.World()
    word = np.zeros(1, np.int32)
    module.bind(world).get_function("one")(1, 32, (word,))
    world.run()
    return int(word[0])


def builds(monkeypatch):
    """Counts what the compiler is asked to build from here on."""
    made = []
    real = compiler.build
    monkeypatch.setattr(cache, "build", lambda plan, target: (made.append(plan), real(plan, target))[1])
    return made


# ---- finding kernels


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("__global__ void a(int*) {}", ["a"]),
        ('extern "C" __global__ void __launch_bounds__(256, 2) a(int*) {}', ["a"]),
        ("__global__ __launch_bounds__(kMost) void\na (int*) {}", ["a"]),
        ("RDMAKIT_KERNEL a(int*) {}\nRDMAKIT_KERNEL __launch_bounds__(64) b() {}", ["a", "b"]),
        ("__global__ void a(int*);\n__global__ void a(int*) {}", ["a"]),
        ("// __global__ void no() {}\n/* RDMAKIT_KERNEL no() */ __global__ void yes() {}", ["yes"]),
        ('const char* s = "__global__ void no()"; __global__ void yes() {}', ["yes"]),
        ("template <class T> __global__ void no(T*) {}\n__global__ void yes() {}", ["yes"]),
        ("template <class T>\n__device__ T f(T v) { return v; }\n__global__ void yes() {}", ["yes"]),
    ],
)
def test_kernels_are_found(code, names):
    assert [name for name, _ in find_kernels(code)] == names


def test_kernels_in_namespaces_are_exported(fresh):
    code = (
        "namespace outer { namespace inner::most {\n"
        "__global__ void put(int* p) { *p = 7; }\n"
        "} }\n"
        'extern "C" {\n__global__ void get(int* p) { *p += 1; }\n}\n'
    )
    assert find_kernels(code) == [("put", "outer::inner::most"), ("get", "")]
    world, word = rdmakit.World(), np.zeros(1, np.int32)
    module = world.compile(code)
    for name in ("put", "get"):
        module.get_function(name)(1, 1, (word,))
    world.run()
    assert word[0] == 8 and module.kernels == ["put", "get"]


def test_comments_and_strings_do_not_move_lines():
    code = 'a /* x\ny */ b "quo\\"te" \'{\' // end\nc'
    assert len(blanked(code)) == len(code) and blanked(code).count("\n") == code.count("\n")
    assert "{" not in blanked(code)


@pytest.mark.parametrize("code", ["", "int main() {}", "template <class T> __global__ void f(T) {}", b"bytes", 7])
def test_a_source_without_kernels_is_refused(code):
    with pytest.raises(BadArgument) as caught:
        compile_source(code)
    assert caught.value.rule


# ---- errors


def test_errors_point_at_the_line_of_the_author(fresh):
    code = "#include <rdmakit/warp.cuh>\n\nRDMAKIT_KERNEL broken(int* p) {\n    p[0] = undeclared;\n}\n"
    with pytest.raises(CompileError) as caught:
        compile_source(code, name="my_kernel.cu")
    assert "my_kernel.cu:4:12: error:" in caught.value.rule
    assert "undeclared" in caught.value.log and "my_kernel.cu:4" in str(caught.value)
    assert not list(fresh.glob("**/*.so"))


def test_rewriting_dynamic_shared_memory_keeps_lines(fresh):
    code = (
        "extern __shared__ __align__(16)\n    unsigned char outside[];\n"
        "__global__ void k(int* p) {\n"
        "    extern __shared__ float inside[];\n"
        "    inside[0] = nonsense;\n}\n"
    )
    with pytest.raises(CompileError) as caught:
        compile_source(code, name="k.cu")
    assert "k.cu:5:" in caught.value.rule


def test_without_a_compiler_the_remedy_is_named(fresh, monkeypatch):
    monkeypatch.setenv("RDMAKIT_CXX", "no-such-compiler")
    with pytest.raises(NotAvailable, match="no C\\+\\+ compiler") as caught:
        compile_source(ONE.replace("VALUE", "123456"))
    assert "apt install g++" in caught.value.remedy


def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    if os.geteuid() == 0:
        fresh.write_text("a file where a directory should be")
        with pytest.raises((NotAvailable, OSError)):
            compile_source(ONE.replace("VALUE", "1"))
        return
    fresh.mkdir(mode=0o500)
    with pytest.raises(NotAvailable, match="cannot be written"):
        compile_source(ONE.replace("VALUE", "1"))


def test_unknown_options(fresh):
    with pytest.raises(BadArgument, match="policy"):
        compile_source(ONE, policy="slow")
    with pytest.raises(BadArgument, match="lanes"):
        compile_source(ONE, lanes=16)
    with pytest.raises(BadArgument, match="no such kernel"):
        compile_source(ONE.replace("VALUE", "1")).get_function("two")


# ---- the cache


def test_the_same_source_is_compiled_once(fresh, monkeypatch):
    made = builds(monkeypatch)
    first = compile_source(ONE.replace("VALUE", "5"))
    assert value_of(first) == 5 and len(made) == 1
    monkeypatch.setattr(compile, "_loaded", {})  # as another process would find it
    assert value_of(compile_source(ONE.replace("VALUE", "5"))) == 5
    assert len(made) == 1
    for other in ({"policy": "timed"}, {"lanes": 32}, {"preempted": False}, {"defines": ("-DX",)}):
        compile_source(ONE.replace("VALUE", "5"), **other)
    assert len(made) == 5


def test_an_edited_header_makes_a_new_kernel_and_undoing_it_finds_the_old(fresh, tmp_path, monkeypatch):
    made = builds(monkeypatch)
    inner, outer = tmp_path / "inner.cuh", tmp_path / "outer.cuh"
    outer.write_text('#include "inner.cuh"\n')
    code = '#include <rdmakit/warp.cuh>\n#include "outer.cuh"\nRDMAKIT_KERNEL one(int* p) { *p = VALUE_OF_HEADER; }\n'

    def run():
        return value_of(compile_source(code, include_dirs=(str(tmp_path),)))

    for turn, value in enumerate((1, 2, 1, 3)):
        inner.write_text(f"#define VALUE_OF_HEADER {value}\n")
        os.utime(inner, ns=(turn, turn))  # even if the clock does not tell
        assert run() == value
    assert len(made) == 3


def test_our_own_headers_count_too(fresh, tmp_path, monkeypatch):
    made = builds(monkeypatch)
    include = tmp_path / "include"
    shutil.copytree(rdmakit.get_include(), include)
    monkeypatch.setattr(rdmakit, "get_include", lambda: str(include))
    assert value_of(compile_source(ONE.replace("VALUE", "rdmakit::kWarpThreads"))) == 32
    header = include / "rdmakit" / "config.cuh"
    header.write_text(header.read_text() + "\n// an edit\n")
    assert value_of(compile_source(ONE.replace("VALUE", "rdmakit::kWarpThreads"))) == 32
    assert len(made) == 2


def test_the_key_does_not_depend_on_where_the_headers_lie(fresh, tmp_path, monkeypatch):
    made = builds(monkeypatch)
    compile_source(ONE.replace("VALUE", "4"))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(rdmakit.get_include(), elsewhere)
    monkeypatch.setattr(rdmakit, "get_include", lambda: str(elsewhere))
    monkeypatch.setattr(compile, "_loaded", {})
    compile_source(ONE.replace("VALUE", "4"))
    assert len(made) == 1


def in_processes(code, cache_directory, count=1):
    """Compile and run `one` of a source in `count` other processes at once; returns what each found."""
    script = (
        "import numpy as np, rdmakit\n"
        "w = rdmakit.World(); p = np.zeros(1, np.int32)\n"
        f"w.compile({code!r}).get_function('one')(1, 32, (p,))\n"
        "w.run(); print(p[0])\n"
    )
    root = str(Path(rdmakit.__file__).parents[1])
    env = {**os.environ, "RDMAKIT_CACHE": str(cache_directory), "PYTHONPATH": root}
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [process.communicate(timeout=120)[0].strip() for process in running]


def test_a_broken_object_or_list_is_compiled_again(tmp_path):
    code = ONE.replace("VALUE", "6")
    assert in_processes(code, tmp_path) == ["6"]
    (built,) = tmp_path.glob("*/*.so")
    size = built.stat().st_size
    for broken, content in ((built, b""), (built, b"no object"), (built.with_suffix(".json"), b"{")):
        broken.write_bytes(content)
        assert in_processes(code, tmp_path) == ["6"]
        assert built.stat().st_size == size


def test_processes_that_compile_the_same_at_once_all_succeed(tmp_path):
    assert in_processes(ONE.replace("VALUE", "99"), tmp_path, 4) == ["99"] * 4
    assert len(list(tmp_path.glob("*/*.so"))) == 1 and not list(tmp_path.glob("*/.*"))


def test_the_cache_lies_where_xdg_says(monkeypatch):
    monkeypatch.delenv("RDMAKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_directory() == Path("/somewhere/rdmakit/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_directory() == Path.home() / ".cache/rdmakit/kernels"


# ---- stock kernels


def test_stock_kernels_are_listed_and_unknown_ones_refused():
    known = compile.stock_kernels()
    assert known and all(path.suffix == ".cu" for path in known.values())
    with pytest.raises(BadArgument, match="no such stock kernel") as caught:
        stock_kernel("no_such_kernel")
    assert sorted(known)[0] in caught.value.rule


def test_a_wheel_brings_its_kernels_and_needs_no_compiler(fresh, tmp_path, monkeypatch):
    include = tmp_path / "include"
    (include / "kernels").mkdir(parents=True)
    shutil.copytree(Path(rdmakit.get_include(), "rdmakit"), include / "rdmakit")
    (include / "kernels" / "one.cu").write_text(ONE.replace("VALUE", "11"))
    monkeypatch.setattr(rdmakit, "get_include", lambda: str(include))
    stock = tmp_path / "stock"
    assert compile.build_stock(stock) == 3
    assert compile.build_stock(stock) == 3 and len(list(stock.glob("*/*.so"))) == 3  # what is right is kept
    monkeypatch.setattr(cache, "stock_directory", lambda: stock)
    monkeypatch.setenv("RDMAKIT_CXX", "no-such-compiler")
    for policy in ("fast", "timed", "explore"):
        world, word = rdmakit.World(policy=policy), np.zeros(1, np.int32)
        world.stock_kernel("one")(1, 32, (word,))
        world.run()
        assert word[0] == 11
    (include / "kernels" / "one.cu").write_text(ONE.replace("VALUE", "12"))
    with pytest.raises(NotAvailable):  # the wheel's copy is of another source
        rdmakit.World().stock_kernel("one")
    monkeypatch.delenv("RDMAKIT_CXX")
    compile.build_stock(stock)
    assert len(list(stock.glob("*/*.so"))) == 3  # what belongs to no kernel of today is gone


def test_a_header_or_kernel_may_be_large():
    body = "\n".join(f"    p[{i}] = {i} + lane;" for i in range(2000))
    run = prepare(f"__global__ void big(int* p) {{ int lane = threadIdx.x;\n{body}\n}}", "big.cu")
    assert run.kernels == ("big",) and run.raw
