"""Every kernel that a notebook or its solutions hold, compiled by NVRTC to machine code, as it would be on a GPU."""

import ast
from pathlib import Path

import pytest
from test_nvrtc_compile import ROOT, architectures_of, complaints, nvrtc  # noqa: F401  the fixture

# What a notebook puts in place of these names before it compiles.
BLANKS = "#define KEEP(sum) (sum)\n"


def kernels() -> list[tuple[str, str]]:
    """(notebook:line, source) of each string that includes our headers and has a kernel."""
    found = []
    for path in sorted(Path(ROOT, "notebooks").glob("**/[0-9][0-9]*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and "#include <rdmakit/" in text and "RDMAKIT_KERNEL" in text:
                found.append((f"{path.relative_to(ROOT / 'notebooks')}:{node.lineno}", text))
    return found


@pytest.mark.parametrize(("where", "source"), kernels(), ids=[where for where, _ in kernels()])
def test_kernel_of_a_notebook_compiles_to_cubin(nvrtc, verdicts, where, source):  # noqa: F811
    found = complaints(nvrtc, verdicts, where, BLANKS + source, architectures_of(source))
    assert not found, "\n".join(found)
