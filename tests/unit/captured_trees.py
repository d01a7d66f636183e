"""Captured trees of files as text, in fixtures/: of what, then a line a file, `path = text` or `path -> target`.

    python tests/unit/captured_trees.py FOLDER TITLE > tests/unit/fixtures/NAME.tree

FOLDER is what `rdmakit doctor --capture FOLDER` has made. Line ends within a file are written as \\n. Left out: what is
of the process and the processor (proc/self, proc/cpuinfo).
"""

import sys
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"
LEFT_OUT = ("proc/cpuinfo", "proc/self")


def text_of(folder: Path, title: str) -> str:
    lines = [f"# {title}"]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            lines.append(f"{name} -> {path.readlink()}")
        elif path.is_file() and not name.startswith(LEFT_OUT):
            lines.append(f"{name} = {path.read_text().rstrip()}".replace("\n", "\\n"))
        elif path.is_dir() and not any(path.iterdir()):
            lines.append(f"{name}/")
    return "\n".join(lines) + "\n"


def build(name: str, root: Path) -> str:
    """The tree below `root`; returns its title."""
    title, *lines = (FIXTURES / f"{name}.tree").read_text().splitlines()
    for line in lines:
        path, kind, text = [*line.split(" ", 2), "", ""][:3]
        at = root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        if not kind:
            at.mkdir(exist_ok=True)
        elif kind == "->":
            at.symlink_to(text)
        else:
            at.write_text(text.replace("\\n", "\n") + "\n")
    return title.removeprefix("# ")


if __name__ == "__main__":
    sys.stdout.write(text_of(Path(sys.argv[1]), sys.argv[2]))
