"""Tests of two hosts with two soft-RoCE ports each, in the lab's virtual machine: `make lab`.

Elsewhere they are skipped. Figures that tests measure are printed and, with RDMAKIT_LAB_RECORD=FILE, kept as a record.
"""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

import pytest
from two_hosts import in_the_lab, left_on, mend

from rdmakit.errors import NotAvailable
from rdmakit.lab import find_kernel, missing_programs

HERE = Path(__file__).parent
FIGURES = pytest.StashKey[dict[str, float]]()


def why_not() -> str:
    """What to do to run these tests."""
    missing = missing_programs()
    if missing:
        return f"apt-get install -y {' '.join(missing)}; make lab-setup; make lab"
    try:
        find_kernel()
    except NotAvailable:
        return "make lab-setup; make lab"
    return "make lab runs it"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}
    if in_the_lab():  # both files' times are of the clock outside, where the machine was started
        began, asked = (Path("/run/lab", name).stat().st_mtime for name in ("began", "environment"))
        config.stash[FIGURES]["boot_s"] = began - asked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = "" if in_the_lab() or not mine else f"needs the soft-RoCE lab: {why_not()}"
    for item in mine:
        item.add_marker(pytest.mark.lab)
        item.add_marker(pytest.mark.timeout(120))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def links_as_they_were():
    """Whatever a test did to the links is undone."""
    yield
    mend()


@pytest.fixture
def figure(pytestconfig):
    """`figure(name, value)`: a number that this run has measured; printed, and kept."""

    def note(name: str, value: float) -> None:
        print(f"measured: {name} = {value:.4g}")
        pytestconfig.stash[FIGURES][name] = value

    return note


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """When a module's tests have run, no device of either host holds an object."""
    yield
    if in_the_lab():
        left = {host: left_on(host) for host in (0, 1)}
        assert not any(left.values()), f"objects that outlive their process: {left}"


@pytest.fixture(scope="session")
def pyverbs_modules():
    """The distribution's pyverbs, for the distribution's Python: imported here once, since that takes seconds."""
    sys.path.append("/usr/lib/python3/dist-packages")
    return pytest.importorskip("pyverbs.qp", reason="apt-get install python3-pyverbs, for this Python's version")


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    found = config.stash.get(FIGURES, {})
    if not found:
        return
    terminalreporter.section("measured in the lab")
    for name, value in found.items():
        terminalreporter.line(f"{name} = {value:.4g}")
    path = os.environ.get("RDMAKIT_LAB_RECORD")
    if path:
        counted = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "skipped")}
        record = {
            "what": "make lab", "measured": True,
            "device": f"soft-RoCE of Linux {platform.release()}, {os.cpu_count()} emulated processors",
            "date": datetime.date.today().isoformat(), "commit": os.environ.get("RDMAKIT_LAB_COMMIT"),
            "command": "make lab", "ok": exitstatus == 0, "figures": found, "config": counted,
        }  # fmt: skip
        Path(path).write_text(json.dumps(record, indent=1) + "\n")
