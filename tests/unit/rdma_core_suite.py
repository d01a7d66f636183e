"""rdma-core's own tests on emulated ConnectX NICs: which of them pass. Keeps the table of docs/verbs.md.

    python tests/unit/rdma_core_suite.py            run every module and write the table anew

The suite is Debian's python3-pyverbs (/usr/share/doc/rdma-core/tests), run unmodified by the system's Python. Modules
that build commands need scapy (`pip install scapy`, or python3-scapy).
"""

import gzip
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rdmakit.emu.uverbs import default_nics, preloaded

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/verbs.md"
SUITE = Path("/usr/share/doc/rdma-core/tests")
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDS_SCAPY = ("mlx5_devx",)
# Modules for other hardware, and those that need a second subsystem (rdma_cm, CUDA, VFIO).
FOREIGN = ("efa_srd", "efadv", "rdmacm", "mlx5_rdmacm", "cuda_dmabuf", "mlx5_cuda_umem", "mlx5_vfio")
# What the others ask for, by what they say as they are skipped or fail; the first that fits.
REASONS = (
    ("raw packets and their steering", r"Raw Packet|type 8|flow table|PCI device"),
    ("UD", r"\bUD\b|type 4|Extended QP"),
    ("UC", r"\bUC\b"),
    ("XRC", r"XRCD"),
    ("DC and streams", r"\bDC\b|DCI|test_odp_dc"),
    ("on-demand paging", r"ODP"),
    ("memory windows", r"\bMW\b|[Mm]emory [Ww]indow"),
    ("a dma-buf that a graphics driver exports", r"dmabuf"),
    ("mkeys of lists, signatures and encryption", r"[Mm]key|Crypto|Mlx5DV QP"),
    ("tag matching", r"Tag matching"),
    ("huge pages", r"huge pages"),
    ("clocks of the device", r"timestamp|real time|Extended CQ"),
    ("atomics of device memory, pacing, scheduling, VAR", r"MEMIC|pacing|schedule|VAR"),
    ("CQEs of 128 bytes, padded or compressed", r"128B"),
)
OTHER = "else"
_ROW = re.compile(r"\| `test_(\w+)`(?:, bonded)? \| (\d+) of (\d+)")


@dataclass(frozen=True)
class Result:
    """What became of one module's tests; `crashed`: its process ended by a signal."""

    module: str
    lag: str
    passed: int
    total: int
    status: int
    output: str

    @property
    def name(self) -> str:
        return f"`test_{self.module}`" + ("" if self.lag == "none" else ", bonded")


def unpack(folder: Path) -> Path:
    """The suite, ready to run, below `folder`."""
    shutil.copytree(SUITE, folder / "tests")
    for packed in (folder / "tests").glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def scapy_folder() -> str:
    """Where the system's Python finds scapy, if this one has it; "" if it has not."""
    found = importlib.util.find_spec("scapy")
    return str(Path(found.origin).parents[1]) if found is not None and found.origin else ""


def run_module(suite: Path, module: str, lag: str = "none", seconds: float = 120) -> Result:
    """Run one module of the unpacked suite in a process of its own, on one NIC."""
    nics = default_nics(1, lag)
    # Warnings of the suite itself would stand between a test and its "ok".
    command = [SYSTEM_PYTHON, "-Wignore", "tests/run_tests.py", f"tests.test_{module}", "-v", "--dev", nics[0].name]
    with preloaded(nics) as environment:
        done = subprocess.run(command, env={**environment, "PYTHONPATH": scapy_folder()}, cwd=suite,
                              capture_output=True, text=True, timeout=seconds)  # fmt: skip
    passed = len(re.findall(r"\.\.\. ok$", done.stderr, re.MULTILINE))
    total = len(re.findall(r"^test_\w+ \(", done.stderr, re.MULTILINE))
    return Result(module, lag, passed, total, done.returncode, done.stderr)


def published() -> list[tuple[str, str, int]]:
    """(module, lag, how many pass) of the page's table."""
    rows = []
    for match in _ROW.finditer(PAGE.read_text()):
        rows.append((match[1], "affinity" if "bonded" in match[0] else "none", int(match[2])))
    return rows


def published_sum() -> tuple[int, int, int]:
    """What the page says below its table: how many pass, of how many, and the sum of what the others ask for."""
    found = re.search(r"^(\d+) of (\d+) pass\. The others ask for ([^|]*?)\n\n", PAGE.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{PAGE} does not say how many pass")
    return int(found[1]), int(found[2]), sum(map(int, re.findall(r"\((\d+)\)", found[3])))


def table(results: list[Result]) -> str:
    """Markdown: what passes, two modules a line."""
    cells = [f"{r.name} | {r.passed} of {r.total}" for r in results if r.passed]
    cells += [" | "] * (len(cells) % 2)
    half = len(cells) // 2
    lines = ["| module | pass | | module | pass |", "|---|---|---|---|---|"]
    lines += [f"| {left} | | {right} |" for left, right in zip(cells[:half], cells[half:], strict=True)]
    return "\n".join(lines) + "\n"


def reasons(results: list[Result]) -> dict[str, int]:
    """How many tests do not pass for which of REASONS, most first."""
    counted: dict[str, int] = {}
    for result in results:
        said = re.findall(r"\.\.\. skipped (?:'(.*)'|\"(.*)\")$", result.output, re.MULTILINE)
        failed = re.findall(r"^(?:ERROR|FAIL): (.*(?:\n.+)*?)\n-{20}", result.output, re.MULTILINE)
        for text in [a or b for a, b in said] + failed:
            name = next((name for name, words in REASONS if re.search(words, text)), OTHER)
            counted[name] = counted.get(name, 0) + 1
    return dict(sorted(counted.items(), key=lambda pair: -pair[1]))


def sentence(results: list[Result]) -> str:
    """Markdown: how many pass, and what the others ask for."""
    total = sum(result.total for result in results)
    passed = sum(result.passed for result in results)
    others = ", ".join(f"{name} ({count})" for name, count in reasons(results).items())
    return "\n".join(textwrap.wrap(f"{passed} of {total} pass. The others ask for {others}.", 120)) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rdma-core-") as folder:
        suite = unpack(Path(folder))
        found = sorted(path.stem.removeprefix("test_") for path in (suite / "tests").glob("test_*.py"))
        asked = [(module, "none") for module in found if module not in FOREIGN] + [("mlx5_lag_affinity", "affinity")]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda one: run_module(suite, *one), asked))
    for result in results:
        print(f"{result.name}: {result.passed} of {result.total}, exit status {result.status}")
    text = PAGE.read_text()
    begin = text.index("| module | pass |")
    end = text.index("\n\n", text.index(" pass. The others ask for ", begin)) + 1
    PAGE.write_text(text[:begin] + table(results) + "\n" + sentence(results) + text[end:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
