"""Files that a subcommand writes where it was told to: when that cannot be, an error that says so.

Leans on errors. What runs for long asks first whether it may write: `writable`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rdmakit.errors import BadArgument

__all__ = ["drawable", "writable", "writing"]


def writable(*paths: str | None) -> None:
    """BadArgument for the first of them that no file can be written to; None stands for a file that is not wanted."""
    with writing():
        for path in filter(None, paths):
            folder = os.path.dirname(path) or "."
            there = os.path.lexists(path)
            if os.path.isdir(path):
                problem = errno.EISDIR
            elif not there and not os.path.isdir(folder):
                problem = errno.ENOTDIR if os.path.lexists(folder) else errno.ENOENT
            elif not os.access(path if there else folder, os.W_OK):
                problem = errno.EACCES
            else:
                continue
            raise OSError(problem, os.strerror(problem), path)


def drawable(path: str | None) -> None:
    """As `writable`, for a picture; and BadArgument or NotAvailable for a name that says how nothing here draws."""
    from rdmakit.show.raster import check_format

    writable(path)
    if path is not None:
        check_format(path)


@contextmanager
def writing() -> Iterator[None]:
    """A file that cannot be opened or written in this block is a BadArgument that names it."""
    try:
        yield
    except OSError as error:
        raise BadArgument(
            "the file cannot be written",
            value=error.filename,
            rule=str(error.strerror),
            remedy="a path in a folder that is there",
        ) from error
