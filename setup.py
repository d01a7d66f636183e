"""Builds what pyproject.toml cannot say: the C++ world, the device headers as data, the stock kernels.

    python setup.py build_ext --inplace     compile what changed, in place, and say what is being compiled

Needs a C++17 compiler and Python.h; no CUDA, no RDMA headers. Objects are kept in build/ and reused while
their source, what it includes and this file are older, so `pip install` after `build_ext` only links.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OBJECTS = f"build/objects-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def files(*patterns: str) -> list[str]:
    """Paths relative to the root, as setuptools wants them, in a stable order."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


WORLD = Extension(
    "rdmakit.emu._world",
    sources=[
        "rdmakit/emu/_world.pyx",
        *files("rdmakit/emu/run/*.cpp", "rdmakit/emu/hca/*.cpp", "rdmakit/emu/explore/*.cpp"),
    ],
    depends=["setup.py", "rdmakit/emu/_explorer.pxi", *files("rdmakit/emu/**/*.hpp", "cuda/rdmakit/*.cuh")],
    include_dirs=["cuda", "rdmakit/emu", "rdmakit/emu/run"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden", "-MMD"],
)
VERBS = Extension(  # links to nothing of RDMA's: libibverbs and libmlx5 are opened when they are needed
    "rdmakit.verbs._verbs",
    sources=["rdmakit/verbs/_verbs.pyx", *files("rdmakit/verbs/native/*.cpp")],
    depends=["setup.py", *files("rdmakit/verbs/*.pxi", "rdmakit/verbs/native/*.hpp", "cuda/rdmakit/*.cuh")],
    include_dirs=["cuda", "rdmakit/verbs"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden", "-MMD"],
)
HCA = files("rdmakit/emu/hca/*.cpp", "rdmakit/emu/explore/*.cpp")
UVERBS = Extension(  # no module of Python's: a library to preload, for which the kernel's headers have to be recent
    "rdmakit.emu._uverbs",
    sources=[*files("rdmakit/emu/uverbs/*.cpp"), *HCA],
    depends=["setup.py", *files("rdmakit/emu/**/*.hpp", "cuda/rdmakit/*.cuh")],
    include_dirs=WORLD.include_dirs,
    language="c++",
    extra_compile_args=WORLD.extra_compile_args,
    libraries=["dl", "pthread"],
    optional=True,
)
STOCK_INPUTS = files("cuda/rdmakit/*.cuh", "cuda/kernels/*.cu", "rdmakit/emu/*.py")


def up_to_date(target: Path, sources: list[str]) -> bool:
    paths = [ROOT / source for source in sources]
    return target.exists() and all(p.exists() and p.stat().st_mtime < target.stat().st_mtime for p in paths)


def includes(made: Path) -> list[str]:
    """What an object was compiled from, as the compiler wrote down; where it did not, what makes it stale."""
    rule = made.with_suffix(".d")
    return rule.read_text().replace("\\\n", " ").split()[1:] if rule.exists() else ["no such file"]


class BuildExtension(build_ext):
    """build_ext that cythonizes late, compiles on all cores and finishes with the stock kernels."""

    def finalize_options(self) -> None:
        from Cython.Build import cythonize  # only builds need Cython: sdist and metadata do not

        self.distribution.ext_modules = cythonize(self.distribution.ext_modules, build_dir="build/cython")
        super().finalize_options()
        self.build_temp = OBJECTS  # pip's own choice is a fresh directory each time

    def build_extension(self, extension: Extension) -> None:
        compiler, compile_one = self.compiler, self.compiler.compile
        began = time.monotonic()

        def compile_all(sources: list[str], output_dir: str = "", **options: Any) -> list[str]:
            objects = compiler.object_filenames(sources, output_dir=output_dir)
            pairs = zip(sources, objects, strict=True)
            stale = [
                source
                for source, made in pairs
                if not up_to_date(Path(made), ["setup.py", *includes(Path(made))])
            ]

            def one(numbered: tuple[int, str]) -> None:
                number, source = numbered
                print(f"[{number}/{len(stale)}] {source}", flush=True)
                compile_one([source], output_dir=output_dir, **options)

            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(one, enumerate(stale, 1)))
            if stale:
                print(f"compiled {len(stale)} files in {time.monotonic() - began:.0f} s", flush=True)
            return objects

        compiler.compile = compile_all
        try:
            super().build_extension(extension)
        finally:
            compiler.compile = compile_one

    def run(self) -> None:
        super().run()
        in_place = self.inplace or getattr(self, "editable_mode", False)
        build_stock_kernels(ROOT if in_place else Path(self.build_lib).resolve())


def build_stock_kernels(root: Path) -> None:
    """Compile cuda/kernels for the CPU runner, by the package under `root`: a first launch then need not."""
    stock, stamp = root / "rdmakit/emu/stock", ROOT / "build/stock.stamp"
    if root == ROOT and stock.exists() and up_to_date(stamp, STOCK_INPUTS):
        return
    began = time.monotonic()
    shutil.rmtree(stock, ignore_errors=True)
    sys.path.insert(0, str(root))
    try:
        count = import_module("rdmakit.emu.compile").build_stock(stock)
    finally:
        sys.path.remove(str(root))
    if root == ROOT:
        stamp.touch()
    print(f"compiled {count} stock kernels in {time.monotonic() - began:.0f} s", flush=True)


class BuildPython(build_py):
    """build_py that also copies device headers and kernels, which lie outside the package, into wheels."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):  # an editable install reads <repo>/cuda
            shutil.rmtree(Path(self.build_lib, "rdmakit/include"), ignore_errors=True)  # of an earlier build
            for source in files("cuda/rdmakit/*.cuh", "cuda/kernels/*.cu"):
                target = Path(self.build_lib, "rdmakit/include", Path(source).relative_to("cuda"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, target)


if __name__ == "__main__":
    os.chdir(ROOT)
    setup(ext_modules=[WORLD, VERBS, UVERBS], cmdclass={"build_ext": BuildExtension, "build_py": BuildPython})
