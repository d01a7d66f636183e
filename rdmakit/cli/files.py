"""Files that a subcommand writes where it was told to: when that cannot be, an error that says so.

Leans on errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rdmakit.errors import BadArgument

__all__ = ["writing"]


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
