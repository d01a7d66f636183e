"""Who may lean on whom: docs/architecture.md, enforced on rdmakit's imports and cuda's includes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Python layer → the layers that it may import besides its own.
ENGINES = {"errors", "layout", "device"}
SIGNALS = ENGINES | {"emu", "verbs", "gpu", "connect"}
PYTHON = {
    "errors": set(),
    "layout": {"errors"},
    "device": {"errors", "layout"},
    "emu": ENGINES,
    "verbs": ENGINES,
    "gpu": ENGINES | {"emu"},
    "connect": ENGINES,
    "channels": SIGNALS | {"signal"},
    "signal": SIGNALS | {"channels"},
    "ep": SIGNALS | {"channels", "signal"},
    "compat": {"errors", "ep"},
    "show": ENGINES,
    "explore": SIGNALS | {"channels", "signal", "ep"},
    "model": SIGNALS | {"channels", "signal", "ep", "show"},
    "lab": {"errors"},
    "course": SIGNALS | {"channels", "signal", "ep", "show", "explore", "model"},
    "cli": SIGNALS | {"channels", "signal", "ep", "show", "explore", "model", "course", "lab"},
}
PYTHON["__main__"] = {"cli"}
# What only one layer, or one module, may import.
OWNERS = {"cupy": "gpu", "pynvml": "gpu", "pyverbs": "verbs", "torch": "ep.tensors"}
RDMA_LIBRARY = re.compile(r"\blib(?:ibverbs|mlx5)\.so|infiniband/\w+\.h")

# Header → layer, and layer → the layers that it may include besides its own.
DEVICE_LAYERS = {
    **dict.fromkeys(("config", "cpu", "cpu_dma", "cpu_preempt", "cpu_watch"), "config"),
    **dict.fromkeys(("atom", "atom_bulk", "bulk", "cost", "warp", "report", "cuda_builtins"), "atom"),
    "post": "queue",
    **dict.fromkeys(("lock", "lock_receive", "lock_send", "lock_stamp", "lock_strategy", "lock_wait"), "signal"),
    **dict.fromkeys(("ll", "numbers", "nvl", "nvl_ll", "nvl_mask"), "ep"),
}
CPU_SEAM = {f"rdmakit/{name}.cuh" for name in ("cpu", "cpu_dma", "cpu_preempt", "cpu_watch", "cuda_builtins")}
BELOW_SIGNAL = {"config", "atom", "wqe", "queue", "hca"}
DEVICE = {
    "config": set(),
    "atom": {"config"},
    "wqe": {"config", "atom"},
    "queue": {"config", "atom", "wqe"},
    "hca": {"config", "atom", "wqe"},
    "signal": BELOW_SIGNAL,
    "channel": BELOW_SIGNAL | {"signal"},
    "ep": BELOW_SIGNAL | {"signal", "channel"},
    "kernels": BELOW_SIGNAL | {"signal", "channel", "ep"},
}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
WITH_ASM = {"rdmakit/atom.cuh", "rdmakit/atom_bulk.cuh", "rdmakit/cpu_dma.cuh"}
ASM = re.compile(r"\b(?:asm|__asm__)\b")


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of everything that a module imports, at whatever depth; relative ones resolved."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            # `from rdmakit import layout` imports a module; `from rdmakit.layout import decode` need not.
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "rdmakit" else (base,)


def strings(tree: ast.AST) -> Iterator[str]:
    """String constants that are not docstrings."""
    documents = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documents.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def layer_of(module: str) -> str:
    """`rdmakit.ep.layout` → `ep`; `rdmakit` itself and names that it re-exports → ''."""
    part = module.removeprefix("rdmakit").removeprefix(".").split(".")[0]
    return part if part in PYTHON else ""


def python_breaches(module: str, source: str, is_package: bool = False) -> list[str]:
    """What one module does that the architecture forbids, as sentences."""
    tree = ast.parse(source)
    layer, found = layer_of(module), []
    for name in imported(tree, module, is_package):
        top = name.split(".")[0]
        if top in OWNERS and not f"{module}.".startswith(f"rdmakit.{OWNERS[top]}."):
            found.append(f"{module} imports {name}: only rdmakit.{OWNERS[top]} may")
        if top != "rdmakit" or not layer:
            continue
        other = layer_of(name)
        if other and other != layer and other not in PYTHON[layer]:
            found.append(f"{module} ({layer}) imports {name} ({other})")
    if layer != "verbs":
        loaded = [text for text in strings(tree) if RDMA_LIBRARY.search(text)]
        found += [f"{module} names {text!r}: only rdmakit.verbs may" for text in loaded]
    return found


def device_layer(path: str) -> str:
    """`rdmakit/hca_wqe.cuh` → `hca`; `kernels/put.cu` → `kernels`."""
    folder, _, name = path.rpartition("/")
    if folder == "kernels":
        return "kernels"
    stem = name.partition(".")[0]
    family = (layer for layer in DEVICE if stem == layer or stem.startswith(f"{layer}_"))
    return DEVICE_LAYERS.get(stem) or next(family, "")


def device_breaches(path: str, source: str) -> list[str]:
    """What one file of cuda/ does that the architecture forbids; `path` is relative to cuda/."""
    code, layer, found = COMMENT.sub("", source), device_layer(path), []
    if not layer:
        return [f"{path} belongs to no layer: name it after one, or add it to DEVICE_LAYERS"]
    if ASM.search(code) and path not in WITH_ASM:
        found.append(f"{path} has inline assembly: only {' and '.join(sorted(WITH_ASM))} may")
    for quote, name in INCLUDE.findall(code):
        if quote == "<" and not name.startswith("rdmakit/"):
            if path not in CPU_SEAM:
                found.append(f"{path} includes <{name}>, which NVRTC lacks: only the CPU's seam may")
            continue
        other = name if "/" in name else f"rdmakit/{name}"
        if other.count("/") != 1 or not other.startswith("rdmakit/") or not other.endswith(".cuh"):
            found.append(f"{path} includes {name}, which is no header of cuda/rdmakit")
        elif device_layer(other) != layer and device_layer(other) not in DEVICE[layer]:
            found.append(f"{path} ({layer}) includes {name} ({device_layer(other)})")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "rdmakit").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_python_modules_keep_their_direction():
    breaches = [
        breach
        for module, path in modules()
        for breach in python_breaches(module, path.read_text(), path.name == "__init__.py")
    ]
    assert not breaches, "\n".join(breaches)


def test_every_python_layer_is_known():
    paths = (ROOT / "rdmakit").iterdir()
    names = {path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}
    unknown = names - set(PYTHON) - {"__init__"}
    assert not unknown, f"add {sorted(unknown)} to PYTHON, with what they may lean on"


def test_device_code_keeps_its_direction():
    cuda = ROOT / "cuda"
    paths = sorted([*(cuda / "rdmakit").glob("*"), *(cuda / "kernels").glob("*")])
    assert paths
    breaches = [b for p in paths for b in device_breaches(p.relative_to(cuda).as_posix(), p.read_text())]
    assert not breaches, "\n".join(breaches)


def test_rdma_headers_are_included_by_verbs_alone():
    kinds = ("*.pyx", "*.pxd", "*.cpp", "*.hpp")
    sources = [path for kind in kinds for path in (ROOT / "rdmakit").rglob(kind) if "verbs" not in path.parts]
    assert [path for path in sources if RDMA_LIBRARY.search(COMMENT.sub("", path.read_text()))] == []


def test_cuda_is_no_python_package():
    """An importable cuda/ would shadow NVIDIA's `cuda.bindings` for whoever starts Python in the repo."""
    assert not list((ROOT / "cuda").rglob("*.py"))
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    done = subprocess.run(
        [sys.executable, "-c", "import cuda.bindings"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_import_is_light():
    """`import rdmakit` brings NumPy, ml_dtypes and the standard library, and touches no driver."""
    probe = (
        "import sys, time\n"
        "began = time.perf_counter(); import numpy, ml_dtypes; middle = time.perf_counter()\n"
        "import rdmakit; end = time.perf_counter()\n"
        "print(f'{middle - began:.3f} {end - middle:.3f}')\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    times, loaded = done.stdout.splitlines()
    print(f"import numpy, ml_dtypes; then rdmakit: {times} s")
    allowed = {"rdmakit", "numpy", "ml_dtypes", "sitecustomize", "usercustomize", "cython_runtime"}
    heavy = {
        name for name in set(loaded.split()) - allowed - sys.stdlib_module_names if not name.startswith("_")
    }
    assert not heavy, f"import rdmakit brought {sorted(heavy)}"


# ---- the checker itself
@pytest.mark.parametrize(
    "module, source, is_package",
    [
        ("rdmakit.layout.decode", "import rdmakit.emu", False),
        ("rdmakit.layout.decode", "from rdmakit import device", False),
        ("rdmakit.device.qp", "from ..emu import world", False),
        ("rdmakit.device", "from .. import show", True),
        ("rdmakit.device", "from ..show import bars", True),
        ("rdmakit.device.qp", "def late():\n    from rdmakit.emu.world import World", False),
        ("rdmakit.emu.world", "import rdmakit.verbs.topology", False),
        ("rdmakit.ep.buffer", "from rdmakit.cli import progress", False),
        ("rdmakit.show.ring", "from rdmakit.ep import plan", False),
        ("rdmakit.errors", "from rdmakit.layout import decode", False),
        ("rdmakit.emu.world", "import cupy as cp", False),
        ("rdmakit.device.qp", "import torch", False),
        ("rdmakit.ep.buffer", "def late():\n    from torch import empty", False),
        ("rdmakit.ep.tensorship", "import torch", False),
        ("rdmakit.ep.buffer", "import rdmakit.compat.deep_ep", False),
        ("rdmakit.emu.world", "from pyverbs.qp import QP", False),
        ("rdmakit.device.qp", "import ctypes\nctypes.CDLL('libibverbs.so.1')", False),
    ],
)
def test_checker_sees_a_bad_import(module, source, is_package):
    assert len(python_breaches(module, source, is_package)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("rdmakit.ep.tensors", "from rdmakit.emu.world import World\nimport torch"),
        ("rdmakit.compat.deep_ep", "from rdmakit.ep.buffer import Buffer"),
        ("rdmakit.cli.info", "from rdmakit.course import hardware\nfrom . import progress"),
        ("rdmakit.gpu.launch", "import cupy"),
        ("rdmakit.device.qp", '"""As libibverbs.so does."""\nimport numpy\nfrom rdmakit import get_include'),
    ],
)
def test_checker_passes_a_good_import(module, source):
    assert python_breaches(module, source) == []


@pytest.mark.parametrize(
    "path, source",
    [
        ("rdmakit/config.cuh", '#include "atom.cuh"'),
        ("rdmakit/wqe.cuh", '#include "queue.cuh"'),
        ("rdmakit/hca_wqe.cuh", '  #  include "queue.cuh"'),
        ("rdmakit/queue.cuh", '#include "hca.cuh"'),
        ("rdmakit/signal_imm.cuh", '#include "channel.cuh"'),
        ("rdmakit/ep.cuh", "#include <cstdint>"),
        ("rdmakit/queue.cuh", 'asm volatile("membar.sys;");'),
        ("kernels/put.cu", '__asm__("nop");'),
        ("kernels/put.cu", '#include "../../rdmakit/emu/run/world.hpp"'),
        ("kernels/put.cu", '#include "kernels/get.cu"'),
        ("rdmakit/misc.cuh", ""),
    ],
)
def test_checker_sees_a_bad_include(path, source):
    assert len(device_breaches(path, source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("kernels/put.cu", "#include <rdmakit/queue.cuh>\n// asm is a word in a comment"),
        ("kernels/put.cu", '#include "rdmakit/ep.cuh"'),
        ("rdmakit/atom.cuh", '#include "config.cuh"\nasm("");'),
        ("rdmakit/cpu.cuh", "#include <cstdint>"),
    ],
)
def test_checker_passes_a_good_include(path, source):
    assert device_breaches(path, source) == []
