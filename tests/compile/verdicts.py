"""What compilers have found nothing to say about, so that the same text is not compiled again for the same compiler.

A text is known by its content and that of every header that it includes. Only contentment is kept: what failed is
compiled anew each time. `pytest --cache-clear` forgets everything. A plugin: test modules name it in `pytest_plugins`.
"""

import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path

import pytest

from rdmakit.gpu.headers import source_key

KEEP_DAYS = 30


class Verdicts:
    """Empty files in `folder`, named by what they vouch for; those that nobody has asked for in a month are removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for known in folder.iterdir():
            if time.time() - known.stat().st_mtime > KEEP_DAYS * 86400:
                known.unlink(missing_ok=True)

    def complaint(self, source: str, include_dirs: Iterable[Path], how: str, compiler: Callable[[], str]) -> str:
        """What `compiler()` says, or nothing where it said so before. `how`: compiler, version, options."""
        text = f"{source_key(source, include_dirs)} {how}"
        known = self.folder / blake2b(text.encode(), digest_size=16).hexdigest()
        if known.exists():
            known.touch()
            return ""
        said = compiler()
        if not said:
            known.touch()
        return said


@pytest.fixture(scope="session")
def verdicts(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Kept between runs in pytest's cache; of this run alone where there is none."""
    cache = getattr(pytestconfig, "cache", None)
    return Verdicts(tmp_path_factory.mktemp("compiled") if cache is None else cache.mkdir("compiled"))
