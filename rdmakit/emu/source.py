"""Device code made ready for g++: `extern __shared__` rewritten, an export appended for each kernel.

Leans on device.source. Lines keep their numbers, so that the compiler's messages point at the source as its
author wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rdmakit.device.source import blanked, namespaces, require_kernels

__all__ = ["PreparedSource", "prepare"]

_DYNAMIC = re.compile(
    r"extern\s+(?:volatile\s+)?__shared__\s+(?:volatile\s+)?"
    r"(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
    r"(?P<type>(?:unsigned\s+|signed\s+|long\s+|short\s+|const\s+)*[A-Za-z_][\w:]*(?:\s*<[^;\[\]]*>)?)"
    r"(?:\s*(?:__align__|alignas)\s*\([^)]*\))?\s+(?P<name>[A-Za-z_]\w*)\s*\[\s*\]\s*;"
)
_STATIC_SHARED = re.compile(r"\bstatic(\s+)__shared__\b")
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


def _rewrite(code: str, first_line: int = 1) -> str:
    scan = blanked(code)
    edits: list[tuple[int, int, str]] = []
    for found in _DYNAMIC.finditer(scan):
        kind, name = " ".join(found["type"].split()), found["name"]
        newlines = "\n" * scan.count("\n", found.start(), found.end())
        if namespaces(scan, found.start()) is None:
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


def prepare(code: str, name: str, first_line: int = 1) -> PreparedSource:
    """`code` as g++ takes it. `name` stands in messages and reports, where lines count from `first_line`.

    BadArgument when it has no kernel.

    >>> prepared = prepare("RDMAKIT_KERNEL put(int* p) { *p = 1; }", "put.cu")
    >>> prepared.kernels, prepared.raw, "RDMAKIT_EXPORT(put)" in prepared.text
    (('put',), False, True)
    """
    kernels = require_kernels(code, name)
    exports = []
    for kernel, space in kernels:
        export = f"RDMAKIT_EXPORT({kernel})"
        exports.append(f"namespace {space} {{ {export} }}" if space else export)
    file = name.replace("\\", "\\\\").replace('"', '\\"')
    text = f'#line {first_line} "{file}"\n{_rewrite(code, first_line)}\n'
    text += f'#line 1 "exports of {file}"\n' + "\n".join(exports) + "\n"
    raw = bool(_RAW.search(blanked(code)))
    return PreparedSource(name, text, tuple(kernel for kernel, _ in kernels), raw)
