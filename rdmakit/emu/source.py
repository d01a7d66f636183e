"""Device code made ready for g++: kernels found, `extern __shared__` rewritten, an export appended for each
kernel.

Leans on errors. Lines keep their numbers, so that the compiler's messages point at the source as its author
wrote it.
"""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass

from rdmakit.errors import BadArgument

__all__ = ["PreparedSource", "blanked", "cell_line", "find_kernels", "prepare"]

_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(
    rf"(?:__global__\s+{_BOUNDS}void\s+{_BOUNDS}|RDMAKIT_KERNEL\s+{_BOUNDS})(?P<name>[A-Za-z_]\w*)\s*\("
)
_TEMPLATE = re.compile(r"template\s*<[^;{}()]*>\s*(?:static\s+|inline\s+|extern\s+\"C\"\s+)*$")
_DYNAMIC = re.compile(
    r"extern\s+(?:volatile\s+)?__shared__\s+(?:volatile\s+)?"
    r"(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
    r"(?P<type>(?:unsigned\s+|signed\s+|long\s+|short\s+|const\s+)*[A-Za-z_][\w:]*(?:\s*<[^;\[\]]*>)?)"
    r"(?:\s*(?:__align__|alignas)\s*\([^)]*\))?\s+(?P<name>[A-Za-z_]\w*)\s*\[\s*\]\s*;"
)
_STATIC_SHARED = re.compile(r"\bstatic(\s+)__shared__\b")
_NAMESPACE = re.compile(r"\bnamespace\s+((?:[A-Za-z_]\w*)(?:\s*::\s*[A-Za-z_]\w*)*)?\s*$")
_RAW = re.compile(
    r"\b(__global__|__shared__|__device__|__syncthreads|__syncwarp|threadIdx|blockIdx|blockDim|gridDim"
    r"|__threadfence\w*|atomic(?:Add|CAS|Exch|Max|Min|And|Or)|__shfl\w*|__ballot_sync)\b"
)


@dataclass(frozen=True)
class PreparedSource:
    """What the compiler gets: `text`, the `kernels` exported, whether CUDA's own names occur (`raw`)."""

    name: str
    text: str
    kernels: tuple[str, ...]
    raw: bool


def blanked(code: str) -> str:
    """`code` with comments and the insides of strings replaced by spaces; offsets and lines stay.

    >>> blanked('int a; // __global__\\nchar* s = "x{";')
    'int a;              \\nchar* s = "  ";'
    """

    def blank(found: re.Match[str]) -> str:
        text = found.group()
        if text[0] in "\"'":
            return text[0] + " " * (len(text) - 2) + text[-1]
        return re.sub(r"[^\n]", " ", text)

    pattern = r"//(?:\\\n|[^\n])*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    return re.sub(pattern, blank, code, flags=re.DOTALL)


def _namespaces(scan: str, upto: int) -> list[str] | None:
    """Names of the namespaces open at an offset; None inside a function or a class."""
    opened: list[str | None] = []
    for found in re.finditer(r"[{}]", scan[:upto]):
        if found.group() == "}":
            if opened:
                opened.pop()
            continue
        before = _NAMESPACE.search(scan, max(0, found.start() - 200), found.start())
        linkage = re.search(r"\bextern\s+\"\s*\"\s*$", scan[max(0, found.start() - 60) : found.start()])
        opened.append((before.group(1) or "") if before else "" if linkage else None)
    if None in opened:
        return None
    return [re.sub(r"\s", "", name) for name in opened if name]


def find_kernels(code: str) -> list[tuple[str, str]]:
    """(name, namespace) of each kernel that `code` defines or declares, once each, templates left out.

    >>> find_kernels('RDMAKIT_KERNEL put(int* p) {}\\nnamespace a { __global__ void get(int n) {} }')
    [('put', ''), ('get', 'a')]
    """
    scan = blanked(code)
    found: dict[str, str] = {}
    for kernel in _KERNEL.finditer(scan):
        if _TEMPLATE.search(scan, max(0, kernel.start() - 400), kernel.start()):
            continue
        spaces = _namespaces(scan, kernel.start())
        found.setdefault(kernel["name"], "::".join(spaces or []))
    return list(found.items())


def _rewrite(code: str, first_line: int = 1) -> str:
    scan = blanked(code)
    edits: list[tuple[int, int, str]] = []
    for found in _DYNAMIC.finditer(scan):
        kind, name = " ".join(found["type"].split()), found["name"]
        newlines = "\n" * scan.count("\n", found.start(), found.end())
        if _namespaces(scan, found.start()) is None:
            text = f"RDMAKIT_DYNAMIC_SHARED({kind}, {name});" + newlines
        else:
            # Declared outside the kernel, as CUDA allows: a pointer to a block's memory can only be had
            # inside.
            line = scan.count("\n", 0, found.end()) + first_line
            value = f"(reinterpret_cast<{kind}*>(::rdmakit::cpu::self().dynamic_shared))"
            text = f"\n#define {name} {value}\n#line {line}\n"
        edits.append((found.start(), found.end(), text))
    for found in _STATIC_SHARED.finditer(scan):  # __shared__ alone means static already
        edits.append((found.start(), found.end(), f"{found.group(1)}__shared__"))
    for start, end, text in sorted(edits, reverse=True):
        code = code[:start] + text + code[end:]
    return code


def cell_line(code: str) -> int:
    """The line of the notebook cell in which `code` stands as a literal, where it begins; 1 without such a cell.

    IPython keeps the text of every cell in `linecache`, under a name that is no file's.

    >>> cell_line("RDMAKIT_KERNEL put(int* p) {}")
    1
    """
    for name, entry in reversed(list(linecache.cache.items())):
        is_cell = "ipykernel" in name or name.startswith("<ipython-input")
        if is_cell and len(entry) == 4 and entry[1] is None:
            cell = "".join(entry[2])
            at = cell.rfind(code) if code.strip() else -1
            if at >= 0:
                return cell.count("\n", 0, at) + 1
    return 1


def prepare(code: str, name: str, first_line: int = 1) -> PreparedSource:
    """`code` as g++ takes it. `name` stands in messages and reports, where lines count from `first_line`.

    BadArgument when it has no kernel.

    >>> prepared = prepare("RDMAKIT_KERNEL put(int* p) { *p = 1; }", "put.cu")
    >>> prepared.kernels, prepared.raw, "RDMAKIT_EXPORT(put)" in prepared.text
    (('put',), False, True)
    """
    if not isinstance(code, str):
        raise BadArgument("device code is a string", value=type(code).__name__, rule="str",
                          remedy="read a file with Path(…).read_text()")
    kernels = find_kernels(code)
    if not kernels:
        raise BadArgument(
            "no kernel in the source",
            value=name,
            rule="`RDMAKIT_KERNEL name(…)` or `__global__ void name(…)`, no template",
            remedy="give a template kernel a plain one that calls it",
        )
    exports = []
    for kernel, space in kernels:
        export = f"RDMAKIT_EXPORT({kernel})"
        exports.append(f"namespace {space} {{ {export} }}" if space else export)
    file = name.replace("\\", "\\\\").replace('"', '\\"')
    text = f'#line {first_line} "{file}"\n{_rewrite(code, first_line)}\n'
    text += f'#line 1 "exports of {file}"\n' + "\n".join(exports) + "\n"
    raw = bool(_RAW.search(blanked(code)))
    return PreparedSource(name, text, tuple(kernel for kernel, _ in kernels), raw)
