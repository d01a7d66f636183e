"""The machine's g++: finding it, the flags that device code is compiled with, and what its failures mean.

Leans on errors. Nothing is cached here; see `cache`.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import rdmakit
from rdmakit.emu.source import PreparedSource
from rdmakit.errors import CompileError, NotAvailable

__all__ = ["Recipe", "build", "compiler_version", "find_compiler", "recipe"]

# -fno-strict-aliasing: device code looks at the same bytes as words, segments and floats. -ffp-contract=off:
# the same bits on every machine. -fstack-clash-protection: a frame larger than a guard page must not step
# over it. Visibility: two modules may define the same helper differently.
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-fstack-clash-protection",
    "-ffp-contract=off",
    "-Wno-unused",
    "-Wno-unknown-pragmas",
)
_TIMEOUT = 300
_EXPLORE = 2  # RDMAKIT_EXPLORE of config.cuh


@dataclass(frozen=True)
class Recipe:
    """How a source is compiled: everything that decides the result, but for the headers and the compiler."""

    source: PreparedSource
    policy: int
    lanes: int
    builtins: bool  # CUDA's own names are used
    preempted: bool  # between any two basic blocks, not at primitives only
    include_dirs: tuple[str, ...]
    defines: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags without paths."""
        extra = ("-DRDMAKIT_PREEMPT",) if self.preempted else ()
        chosen = (f"-DRDMAKIT_POLICY={self.policy}", f"-DRDMAKIT_LANES={self.lanes}", *self.defines)
        return (*_FLAGS, *chosen, *extra)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Headers whose functions the compiler calls by itself: between basic blocks, before accesses to memory."""
        preempt = ["cpu_preempt.cuh"] if self.preempted else []
        watch = ["cpu_watch.cuh"] if self.policy == _EXPLORE else []
        return (*preempt, *watch)

    @property
    def hooked_flags(self) -> tuple[str, ...]:
        """What makes it call them; not for the hooks themselves."""
        blocks = ("-fsanitize-coverage=trace-pc",) if self.preempted else ()
        # memcpy and its kin as calls: expanded in place they would be accesses that nobody is told of.
        copies = ("-fno-builtin-memcpy", "-fno-builtin-memset", "-fno-builtin-memmove")
        watch = ("-fsanitize=thread", "--param", "tsan-distinguish-volatile=1", *copies)
        return (*blocks, *(watch if self.policy == _EXPLORE else ()))

    @property
    def identity(self) -> str:
        """Text that is equal for equal recipes, wherever the headers are installed."""
        return "\n".join(["3", platform.machine(), *self.flags, str(self.builtins), self.source.text])


def recipe(
    source: PreparedSource,
    *,
    policy: int,
    lanes: int,
    preempted: bool,
    include_dirs: tuple[str, ...] = (),
    defines: tuple[str, ...] = (),
) -> Recipe:
    """The recipe for a source; CUDA's own names are there if it uses them or runs a fibre a thread."""
    return Recipe(source, policy, lanes, source.raw or lanes == 32, preempted, include_dirs, defines)


def find_compiler() -> str:
    """Path of g++ (RDMAKIT_CXX, else g++, else c++). NotAvailable, with the remedy, when there is none."""
    named = os.environ.get("RDMAKIT_CXX")
    found = shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise NotAvailable(
            "no C++ compiler for device code",
            value=named or "g++",
            rule="kernels for the CPU runner are compiled on this machine",
            remedy="apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora); or set RDMAKIT_CXX",
        )
    return found


@functools.lru_cache(maxsize=8)
def compiler_version(path: str, modified_ns: int) -> str:
    """First line of `--version`; `modified_ns` is the binary's, so that an upgrade is noticed."""
    del modified_ns
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition("\n")[0]


def _run(command: list[str], name: str, work: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=work)
    except subprocess.TimeoutExpired:
        raise CompileError(f"compiling {name} took more than {_TIMEOUT} s", remedy="simplify the source") from None
    if done.returncode:
        raise CompileError(
            f"{name} does not compile for the CPU runner",
            rule=_first_error(done.stderr) or f"{command[0]} ended with status {done.returncode}",
            log=f"{done.stderr.strip()}\n$ {shlex.join(command)}",
        )


def _first_error(log: str) -> str:
    found = re.search(r"^(.*?\berror: .*)$", log, re.MULTILINE)
    return found.group(1) if found else ""


def build(plan: Recipe, target: Path) -> list[str]:
    """Compile into the shared object `target`; returns the paths of all headers that were read.

    CompileError carries the compiler's log, whose lines are those of the source as its author wrote it.
    """
    compiler = find_compiler()
    include = rdmakit.get_include()
    # Messages, reports and debug information name headers alike wherever they are installed.
    paths = [f"-ffile-prefix-map={include}/=", "-I", include]
    target = target.absolute()
    for directory in plan.include_dirs:
        paths += ["-I", directory]
    with tempfile.TemporaryDirectory(prefix="rdmakit-") as work:
        source, deps, main = Path(work, "kernel.cpp"), Path(work, "kernel.d"), Path(work, "kernel.o")
        source.write_text(plan.source.text, encoding="utf-8")
        paths.append(f"-ffile-prefix-map={work}=.")
        compile_only = [compiler, *plan.flags, *paths, "-MD", "-MF", str(deps)]
        command = [*compile_only, *(("-include", "rdmakit/cuda_builtins.cuh") if plan.builtins else ())]
        _run([*command, *plan.hooked_flags, "-c", str(source), "-o", str(main)], plan.source.name, work)
        headers, objects = set(_read(deps, source)), [str(main)]
        # Callbacks that the compiler adds calls of must have none themselves: translation units of their own.
        for name in plan.hooks:
            hook, object_file = Path(include, "rdmakit", name), str(Path(work, f"{name}.o"))
            flags = [*compile_only, "-fno-tree-loop-distribute-patterns", "-c", "-x", "c++"]
            _run([*flags, str(hook), "-o", object_file], hook.name, work)
            headers |= set(_read(deps, source))
            objects.append(object_file)
        _run([compiler, "-shared", *objects, "-o", str(target)], plan.source.name, work)
        return sorted(headers)


def _read(deps: Path, source: Path) -> list[str]:
    """Paths in a make rule that gcc -MD has written, without the source itself."""
    text = deps.read_text(encoding="utf-8").replace("\\\n", " ")
    words = re.split(r"(?<!\\)\s+", text.partition(":")[2].strip())
    return [word.replace("\\ ", " ") for word in words if word and word != str(source)]
