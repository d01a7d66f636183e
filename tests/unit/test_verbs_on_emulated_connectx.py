"""The distribution's libibverbs and libmlx5 on emulated HCAs: tests/rdma, the examples, rdma-core's own tests."""

import ctypes.util
import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.emu.uverbs import Nic, library, preloaded
from rdmakit.errors import BadArgument, NotAvailable

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path("/usr/share/doc/rdma-core/tests")  # Debian's python3-pyverbs
SYSTEM_PYTHON = "/usr/bin/python3"
NOTHING_COLLECTED = 5  # pytest.ExitCode

try:
    library()
    built = True
except NotAvailable:
    built = False
pytestmark = [
    pytest.mark.skipif(not built, reason="rdmakit.emu._uverbs is not built: apt-get install linux-libc-dev"),
    pytest.mark.skipif(
        not (ctypes.util.find_library("ibverbs") and ctypes.util.find_library("mlx5")),
        reason="no libibverbs: apt-get install libibverbs1 ibverbs-providers",
    ),
]


def run(command, nics=2, **more):
    with preloaded(nics) as environment:
        return subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT), **more.pop("env", {})},
                              capture_output=True, text=True, timeout=200, **more)  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests/rdma").glob("test_*.py")))
def test_the_suite_for_real_devices(name, run_seed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--seed={run_seed}"]
    done = run([*command, f"tests/rdma/{name}"], cwd=ROOT)
    counted = re.search(r"(\d+) passed", done.stdout)
    if done.returncode == NOTHING_COLLECTED and "pip install torch" in done.stdout:
        pytest.skip("pip install torch: Buffer takes and returns its tensors")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted or "apt-get install" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "nics",
    [4, [Nic(f"mlx5_{n}", (f"10.0.{n}.1", f"10.0.{n}.2")) for n in range(2)]],
    ids=["a NIC for each port", "two ports a NIC"],
)
def test_hosts_of_two_ports(nics, run_seed):
    """Both ports of each host, as planned."""
    chosen = "ports or port or low_latency_among or normal_calls"
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--seed={run_seed}", "-k", chosen,
                "tests/rdma/test_hosts.py"], nics, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr


def example(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: apt-get install ibverbs-utils")
    return found


def test_ibv_devices_lists_them():
    done = run([example("ibv_devices")], nics=3)
    assert re.findall(r"^\s+(mlx5_\d)\s+([0-9a-f]{16})$", done.stdout, re.MULTILINE) == [
        ("mlx5_0", "020000fffe000001"),
        ("mlx5_1", "020000fffe000002"),
        ("mlx5_2", "020000fffe000003"),
    ]


def test_ibv_devinfo_shows_a_connectx():
    done = run(
        [example("ibv_devinfo"), "-v", "-d", "mlx5_1"],
        nics=[Nic("mlx5_0", ("10.9.0.1",)), Nic("mlx5_1", ("10.9.1.7",))],
    )
    assert done.returncode == 0, done.stderr
    for shown in ("PORT_ACTIVE (4)", "::ffff:10.9.1.7, RoCE v2", "vendor_part_id:\t\t\t4129", "4096 (5)"):
        assert shown in done.stdout, done.stdout


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """rdma-core's own tests, unpacked."""
    if not SUITE.exists():
        pytest.skip("no rdma-core tests: apt-get install python3-pyverbs")
    folder = tmp_path_factory.mktemp("rdma-core")
    shutil.copytree(SUITE, folder / "tests")
    for packed in (folder / "tests").glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


# Module of rdma-core 44's tests → how many of its tests run and pass here, at least.
PASSES = {
    "atomic": 7, "cq": 3, "cq_events": 1, "cqex": 3, "device": 13, "mlx5_raw_wqe": 1, "mr": 1, "pd": 4,
    "qp": 9, "qpex": 9,
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(PASSES))
def test_rdma_cores_own_tests(suite, module):
    command = [SYSTEM_PYTHON, "tests/run_tests.py", f"tests.test_{module}", "-v", "--dev", "mlx5_0"]
    done = run(command, nics=1, cwd=suite)
    passed = len(re.findall(r"\.\.\. ok$", done.stderr, re.MULTILINE))
    assert done.returncode == 0 and passed >= PASSES[module], done.stderr


def test_a_number_of_nics_that_cannot_be():
    with pytest.raises(BadArgument, match="17"), preloaded(17):
        pass


def test_the_command_runs_a_program_and_returns_its_status():
    done = subprocess.run(
        [sys.executable, "-m", "rdmakit", "connectx", "--nics", "1", "--", sys.executable, "-c",
         "import os, sys; sys.exit(len(os.listdir(os.environ['SYSFS_PATH'] + '/class/infiniband')) + 40)"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 41, done.stderr
    done = subprocess.run([sys.executable, "-m", "rdmakit", "connectx"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "nothing to run" in done.stderr


def test_posting_by_the_array_is_checked_and_compared():
    from rdmakit.cli.bench_post import measure

    result = measure(repetitions=20)
    figures = result["figures"]
    assert result["ok"] and 0 < figures["ns_per_wr"] and 0 < figures["ns_per_cqe"]
    if "post_gain" in figures:  # ten times is what is promised; a busy machine may cost some of it
        assert figures["post_gain"] > 4 and figures["poll_gain"] > 4, figures
