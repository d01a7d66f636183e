"""Tests for devices that libibverbs lists: hardware, soft-RoCE, or emulated ones (rdmakit connectx -- pytest …).

RDMAKIT_DEVICES=mlx5_0,mlx5_1 chooses the two ends; by default the first two devices, or the only one twice.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import NotAvailable
from rdmakit.verbs import _verbs
from rdmakit.verbs.backend import device_names

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "any"), str(HERE.parent / "unit")]  # rigs and checks that are shared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.rdma)


def asked() -> list[str]:
    """The devices that RDMAKIT_DEVICES names."""
    return [name for name in os.environ.get("RDMAKIT_DEVICES", "").split(",") if name]


@pytest.fixture(scope="session")
def devices() -> tuple[str, str]:
    """Names of two devices that reach each other."""
    known, _ = device_names()
    found = asked() or known
    if not found:
        pytest.skip("no RDMA device: rdmakit connectx -- python -m pytest tests/rdma")
    return found[0], found[1] if len(found) > 1 else found[0]


@pytest.fixture(scope="session")
def mlx5() -> set[str]:
    """Names of the devices with queues that we can reach."""
    known, _ = device_names()  # none where the kernel has no RDMA at all, which _verbs.devices() refuses to say
    return {str(device["name"]) for device in _verbs.devices() if device["mlx5"]} if known else set()


@pytest.fixture(scope="session")
def spelled(mlx5):
    """`spelled(device, kind)`: a string that opens its "own" queues, "devx" or "proxied" ones; skips without."""

    def of(device: str, kind: str) -> str:
        if kind == "own":
            return device
        if device not in mlx5:
            pytest.skip(f"{device} has no queues of its own: it is proxied anyway")
        if kind == "devx":
            try:
                rdmakit.open(f"{device}:queues=devx").close()
            except NotAvailable as error:
                pytest.skip(f"no DevX: {error}")
        return f"{device}:queues={kind}"

    return of


@pytest.fixture(params=["own", "devx", "proxied"])
def contexts(request, devices, spelled):
    """Both ends, opened: on the device's own queues, on such that commands made, and through the proxy."""
    first, second = (spelled(device, request.param) for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        yield here, there


@pytest.fixture(params=["own", "devx", "proxied"])
def names(request, spelled):
    """Device strings of all that reach each other: those that RDMAKIT_DEVICES names, or all that there are."""
    found = asked() or sorted(device_names()[0], key=lambda name: (len(name), name))
    if not found:
        pytest.skip("no RDMA device: rdmakit connectx -- python -m pytest tests/rdma")
    return [spelled(name, request.param) for name in found]


@pytest.fixture
def devx_ends(devices, spelled):
    """Two connected queue pairs that commands made, with 8 receives and CQs of 16 entries."""
    first, second = (spelled(device, "devx") for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        yield connected_pair(here, there, rq_wqes=8, cq_entries=16)


def held() -> dict[str, int]:
    """How many objects of each kind the kernel holds for this process; {} where nobody can tell (`rdma resource`)."""
    found: dict[str, int] = {}
    if not shutil.which("rdma") or "_uverbs" in os.environ.get("LD_PRELOAD", ""):
        return found
    for kind in ("pd", "cq", "qp", "mr"):
        asked = subprocess.run(["rdma", "-j", "resource", "show", kind], capture_output=True, text=True)
        rows = json.loads(asked.stdout or "[]") if asked.returncode == 0 else []
        found[kind] = sum(row.get("pid") == os.getpid() for row in rows)
    return {kind: count for kind, count in found.items() if count}


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """This process holds nothing of any device as a module begins: pytest keeps a last test's arguments until then."""
    gc.collect()
    assert not held(), "objects that outlive the tests of the module before"


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.collect()
    if left := held():
        print(f"\nobjects that outlive the tests: {left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def program():
    """`program(code, *arguments, **environment)`: a Python program in a process of its own, on the same devices."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], env={**os.environ, **environment},
                              capture_output=True, text=True, timeout=120)  # fmt: skip

    return run


@pytest.fixture(scope="module")
def started():
    """Processes by the names of the devices: starting four with torch takes longer than what they do."""
    found = {}
    yield found
    for ranks in found.values():
        ranks.end()


@pytest.fixture
def ranks(started, names):
    """Two hosts of two ranks each, on these devices; started anew where one has died."""
    import two_by_two

    place = ",".join(names)
    if place not in started:
        started[place] = two_by_two.start(names)
    yield started[place]
    if started[place].dead():
        started.pop(place).end()
