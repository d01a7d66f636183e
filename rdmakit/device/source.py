"""Device code read as text: the kernels that a source defines, their parameters, the cell that it stands in.

Leans on errors: every backend that compiles device code reads it in the same way.
"""

from __future__ import annotations

import linecache
import re

from rdmakit.errors import BadArgument

__all__ = ["blanked", "cell_line", "find_kernels", "namespaces", "parameters", "require_kernels"]

_BOUNDS = r"(?:(?:__launch_bounds__|RDMAKIT_LAUNCH_BOUNDS)\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(
    rf"(?:__global__\s+{_BOUNDS}void\s+{_BOUNDS}|RDMAKIT_(?:NAMED_)?KERNEL\s+{_BOUNDS})(?P<name>[A-Za-z_]\w*)\s*\("
)
_TEMPLATE = re.compile(r"template\s*<[^;{}()]*>\s*(?:static\s+|inline\s+|extern\s+\"C\"\s+)*$")
_NAMESPACE = re.compile(r"\bnamespace\s+((?:[A-Za-z_]\w*)(?:\s*::\s*[A-Za-z_]\w*)*)?\s*$")


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


def namespaces(scan: str, upto: int) -> list[str] | None:
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
        spaces = namespaces(scan, kernel.start())
        found.setdefault(kernel["name"], "::".join(spaces or []))
    return list(found.items())


def require_kernels(code: str, name: str) -> list[tuple[str, str]]:
    """`find_kernels` of a source called `name`; BadArgument when it is no string or has none."""
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
    return kernels


def parameters(code: str, kernel: str) -> tuple[str, ...]:
    """The parameters of a kernel as they are written, without comments; KeyError when `code` defines none of that name.

    >>> parameters("RDMAKIT_KERNEL put(const int* from,  // here\\n  float by) {}", "put")
    ('const int* from', 'float by')
    """
    scan = blanked(code)
    for found in _KERNEL.finditer(scan):
        if found["name"] != kernel or _TEMPLATE.search(scan, max(0, found.start() - 400), found.start()):
            continue
        parts, depth, start = [], 0, found.end()
        for at in range(found.end(), len(scan)):
            if scan[at] in "(<[{":
                depth += 1
            elif scan[at] in ">]}" or (scan[at] == ")" and depth > 0):
                depth -= 1
            elif depth == 0 and scan[at] in ",)":
                parts.append(" ".join(scan[start:at].split()))
                start = at + 1
                if scan[at] == ")":
                    return tuple(part for part in parts if part not in ("", "void"))
    raise KeyError(kernel)


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
