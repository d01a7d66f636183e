"""What the documents say: their Python runs, their links lead somewhere, their make targets exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
FILE = re.compile(r"`((?:cuda|rdmakit|tests|docs|notebooks|tutorials)/[\w./]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document, tmp_path):
    """All blocks of a document are one session."""
    blocks = PYTHON.findall(document.read_text())
    if not blocks:
        return
    session = tmp_path / "session.py"
    session.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(session)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(document):
    text = document.read_text()
    named = [document.parent / link for link in LINK.findall(text)]
    named += [ROOT / name for name in FILE.findall(text) if "_x.py" not in name]
    assert [str(path) for path in named if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_console_blocks_show_what_is_printed(document):
    """Each line that starts with "$ rdmakit" is run; "…" stands for any text, alone on a line for any lines."""
    for block in CONSOLE.findall(document.read_text(encoding="utf-8")):
        for command, _, shown in (part.partition("\n") for part in block.split("$ rdmakit ")[1:]):
            done = subprocess.run(
                [sys.executable, "-m", "rdmakit", *shlex.split(command)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", timeout=120, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            )  # fmt: skip
            wanted = ".*".join(re.escape(piece) for piece in shown.split("…"))
            assert re.fullmatch(wanted, done.stdout, re.DOTALL), done.stdout


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for fence in re.findall(r"^```sh\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE):
            for target in re.findall(r"^make ([a-z]+)", fence, re.MULTILINE):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_picture_is_readable_in_light_and_dark():
    picture = (ROOT / "docs/architecture.svg").read_text()
    light, _, dark = picture.partition("prefers-color-scheme: dark")
    for style in ("page", "code", "runs", "plan", "seam", "flow", "text"):
        assert re.search(rf"\b{style} \{{", light) and re.search(rf"\b{style} \{{", dark), style
    assert "<title" in picture and "<desc" in picture
