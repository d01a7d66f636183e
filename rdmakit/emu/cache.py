"""Compiled kernels on disk, found again by the content of the source and of every header that it includes.

Leans on compiler. Layout: `<cache>/<recipe>/<headers>.so` with a `.json` beside it that lists the headers and
their hashes, as the compiler reported them. A kernel is used only if every header on its list still has that
content; the list of a recipe's other states stays, so that undoing an edit finds the old kernel. Renames are
atomic: processes may compile the same kernel at once, the last one wins, and what it replaces is equal.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import rdmakit
from rdmakit.emu.compiler import Recipe, build, compiler_version, find_compiler
from rdmakit.errors import NotAvailable

__all__ = ["cache_directory", "compiled", "stock_directory"]

_INCLUDE = "<include>/"  # stands for the directory of our own headers, wherever it is


def cache_directory() -> Path:
    """$RDMAKIT_CACHE, else $XDG_CACHE_HOME/rdmakit/kernels, else ~/.cache/rdmakit/kernels."""
    named = os.environ.get("RDMAKIT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "rdmakit", "kernels")


def stock_directory() -> Path:
    """Where a wheel carries kernels that were compiled when it was built."""
    return Path(__file__).resolve().parent / "stock"


@functools.lru_cache(maxsize=4096)
def _hash_at(path: str, modified_ns: int, size: int, inode: int) -> str:
    del modified_ns, size, inode
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _content(path: str) -> str:
    """Hash of a file's content, "" when there is none; read again only if the file looks different."""
    try:
        stat = os.stat(path)
        return _hash_at(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError:
        return ""


def _real(named: str) -> str:
    return str(Path(rdmakit.get_include(), named[len(_INCLUDE) :])) if named.startswith(_INCLUDE) else named


def _named(path: str) -> str:
    include = rdmakit.get_include() + os.sep
    return _INCLUDE + path[len(include) :] if path.startswith(include) else os.path.abspath(path)


def _fresh(headers: dict[str, str], own_only: bool) -> bool:
    listed = headers.items()
    return all(_content(_real(name)) == kept for name, kept in listed if not own_only or name.startswith(_INCLUDE))


def _lookup(directory: Path, own_only: bool = False) -> Path | None:
    """A kernel of a recipe whose headers are as they were. `own_only`: system headers may differ."""
    try:
        manifests = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return None
    for manifest in manifests:
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            headers: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["headers"]
            found = manifest.with_suffix(".so")
            if found.exists() and _fresh(headers, own_only):
                return found
    return None


def _write(path: Path, data: dict[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
    os.replace(name, path)


def _compile_into(directory: Path, plan: Recipe) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=directory, prefix=".", suffix=".so")
    os.close(handle)
    fresh = Path(name)
    try:
        headers = {_named(path): _content(path) for path in build(plan, fresh)}
        key = hashlib.sha256(json.dumps(sorted(headers.items())).encode()).hexdigest()[:32]
        target = directory / f"{key}.so"
        fresh.chmod(0o755)
        os.replace(fresh, target)
        _write(target.with_suffix(".json"), {"headers": headers, "source": plan.source.name})
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return target


def _recipe_key(plan: Recipe, *more: str) -> str:
    text = "\0".join([plan.identity, *plan.include_dirs, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def compiled(plan: Recipe, *, into: Path | None = None, again: bool = False) -> Path:
    """The shared object for a recipe: from the wheel, from the cache, or compiled now.

    `into` compiles into a stock directory instead. `again` ignores what is there (it was found to be broken).
    """
    if into is not None:
        directory = into / _recipe_key(plan)
        return _lookup(directory) or _compile_into(directory, plan)
    # A wheel's kernels were made by some other compiler: their key leaves it out.
    found = None if again else _lookup(stock_directory() / _recipe_key(plan), own_only=True)
    if found is not None:
        return found
    compiler = find_compiler()
    version = compiler_version(compiler, os.stat(compiler).st_mtime_ns)
    directory = cache_directory() / _recipe_key(plan, version)
    found = None if again else _lookup(directory)
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(found.with_suffix(".json"))  # first in line next time
        return found
    try:
        return _compile_into(directory, plan)
    except PermissionError as error:
        raise NotAvailable(
            "the kernel cache cannot be written",
            value=str(directory),
            rule=str(error),
            remedy="set RDMAKIT_CACHE to a directory that you own",
        ) from error
