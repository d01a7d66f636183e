"""The distribution's libibverbs and libmlx5 on emulated HCAs: tests/rdma, the examples, rdma-core's own tests."""

import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rdma_core_suite

from rdmakit.emu.uverbs import Nic, default_nics, missing, preloaded
from rdmakit.errors import BadArgument

ROOT = Path(__file__).resolve().parents[2]
NOTHING_COLLECTED = 5  # pytest.ExitCode

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def run(command, nics=2, seconds=200, **more):
    with preloaded(nics) as environment:
        return subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT), **more.pop("env", {})},
                              capture_output=True, text=True, timeout=seconds, **more)  # fmt: skip


FOR_REAL_DEVICES = [(path.name, "none") for path in sorted((ROOT / "tests/rdma").glob("test_*.py"))]
FOR_REAL_DEVICES.remove(("test_lag_ports.py", "none"))
WITH_BONDS = ("test_lag_ports.py", "test_bench_ports.py", "test_course_cells.py")
FOR_REAL_DEVICES += [(name, lag) for name in WITH_BONDS for lag in ("hash", "affinity")]


@pytest.mark.timeout(400)  # three kinds of queues each: a minute for hosts on two idle cores
@pytest.mark.parametrize(("name", "lag"), FOR_REAL_DEVICES)
def test_the_suite_for_real_devices(name, lag, run_seed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--seed={run_seed}"]
    done = run([*command, f"tests/rdma/{name}"], nics=default_nics(2, lag), seconds=370, cwd=ROOT)
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
    chosen = "own and (ports or port or low_latency_among or normal_calls)"  # other queues: with one port, above
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--seed={run_seed}", "-k", chosen,
                "tests/rdma/test_hosts.py"], nics, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "nics",
    [4, [Nic(f"mlx5_{n}", (f"10.0.{n}.1", f"10.0.{n}.2")) for n in range(2)]],
    ids=["a NIC for each port", "two ports a NIC"],
)
def test_bandwidth_of_two_ports_between_two_processes(nics, tmp_path):
    """`rdmakit bench ports` as two hosts run it; both say the same, and why two emulated ports are not twice one."""
    each = ["mlx5_0,mlx5_1", "mlx5_2,mlx5_3"] if nics == 4 else ["mlx5_0", "mlx5_1"]
    carried = 8 * (16 << 16)  # of each queue pair: eight batches
    quick = ["--qp-bytes", str(carried), "--rounds", "1", "--timeout", "60", "--json"]
    with preloaded(nics) as environment:
        ranks = [
            subprocess.Popen([sys.executable, "-m", "rdmakit", "bench", "ports", "--meet", f"file:{tmp_path}/meeting",
                              "--rank", str(rank), "--ranks", "2", "--devices", devices, *quick, "--out",
                              str(tmp_path / f"{rank}.json")], env={**environment, "PYTHONPATH": str(ROOT)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank, devices in enumerate(each)
        ]  # fmt: skip
        ended = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], ended
    near, far = (json.loads(said) for said, _ in ended)
    assert near["figures"] == far["figures"] and near["ok"] and near["what"] == "rdmakit bench ports"
    assert json.loads((tmp_path / "1.json").read_text())["figures"] == far["figures"]
    figures = near["figures"]
    assert min(figures[name] for name in ("port_1_gbs", "port_2_gbs", "both_ports_gbs", "both_over_one")) > 0
    assert 1 <= figures["port_bytes_max_over_min"] <= 1.05 and figures["losses"] == 0
    for port in near["counters"].values():
        assert port["payload"] == 4 * carried < port["sender"]["xmit_bytes"] == port["receiver"]["rcv_bytes"]
    assert figures["both_over_one"] >= 1.9 or near["causes"]


def example(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: apt-get install ibverbs-utils perftest")
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
    if not rdma_core_suite.SUITE.exists():
        pytest.skip("no rdma-core tests: apt-get install python3-pyverbs")
    return rdma_core_suite.unpack(tmp_path_factory.mktemp("rdma-core") / "suite")


@pytest.mark.parametrize(("module", "lag", "passes"), rdma_core_suite.published())
def test_what_the_page_says_of_rdma_cores_own_tests(suite, module, lag, passes):
    if module in rdma_core_suite.NEEDS_SCAPY and not rdma_core_suite.scapy_folder():
        pytest.skip("rdma-core's tests of commands need scapy: pip install scapy")
    result = rdma_core_suite.run_module(suite, module, lag)
    assert result.passed >= passes, result.output


def test_the_page_sums_up_what_its_table_says():
    passed, total, others = rdma_core_suite.published_sum()
    assert passed == sum(row[2] for row in rdma_core_suite.published()) and passed + others == total


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


def test_a_command_that_is_terminated_leaves_nothing(tmp_path):
    """As `timeout` and batch systems do: the tree of files goes, and so does what was started."""
    code = "import os, sys, time; print(os.getpid(), os.environ['SYSFS_PATH'], flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "rdmakit", "connectx", "--", sys.executable, "-c", code]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid, tree = started.stdout.readline().split()
    assert Path(tree).is_dir()
    started.terminate()
    assert started.wait(20) == 143 and not Path(tree).exists()
    assert not Path(f"/proc/{pid}").exists()


def test_bonds_that_cannot_be():
    with pytest.raises(BadArgument, match="active-backup"):
        Nic("mlx5_bond_0", ("10.0.0.1",), lag="active-backup")
    with pytest.raises(BadArgument, match="one address"):
        Nic("mlx5_bond_0", ("10.0.0.1", "10.0.1.1"), lag="hash")


def two_processes(program, *options, nics=2):
    """A server on the first NIC, a client on the second, which meet over TCP on a port of this test's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [example(program), "-p", port, *options]
    with preloaded(nics) as environment:
        server = subprocess.Popen([*command, "-d", "mlx5_0"], env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)  # fmt: skip
        try:
            for _ in range(100):  # until the server listens, or has ended
                client = subprocess.run([*command, "-d", "mlx5_1", "127.0.0.1"], env=environment, capture_output=True,
                                        text=True, timeout=100)  # fmt: skip
                too_early = client.returncode != 0 and "connect" in client.stdout + client.stderr
                if not too_early or server.poll() is not None:
                    break
                time.sleep(0.1)
            said, _ = server.communicate(timeout=30)
        finally:
            server.kill()
            server.wait()
        counted = [
            counter_of(environment, "mlx5_1", "port_xmit_data"),
            counter_of(environment, "mlx5_0", "port_rcv_data"),
        ]
    assert client.returncode == 0 and server.returncode == 0, (client.stdout, client.stderr, said)
    assert not Path(environment["SYSFS_PATH"]).exists()
    return client.stdout, [4 * words for words in counted]


def counter_of(environment, device, name):
    path = f"{environment['SYSFS_PATH']}/class/infiniband/{device}/ports/1/counters/{name}"
    return int(subprocess.run(["cat", path], env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("program", ["ibv_rc_pingpong", "ibv_srq_pingpong"])
def test_two_processes_play_ping_pong(program):
    said, (sent, received) = two_processes(program, "-e", "-n", "200", "-s", "4096", "-g", "1")
    assert "200 iters in" in said
    assert 200 * 4096 <= received <= sent < 1.5 * 200 * 4096  # with acknowledgements, and a few more to begin with
    assert sent - received < 4096  # an answer to who has just ended comes in nowhere; every message has


@pytest.mark.parametrize(
    ("program", "queue_pairs"),
    [("ib_write_bw", 1), ("ib_write_bw", 4), ("ib_read_bw", 1), ("ib_send_bw", 1), ("ib_atomic_bw", 1)],
)
def test_perftest_between_two_processes(program, queue_pairs):
    size = [] if program == "ib_atomic_bw" else ["-s", "65536"]
    said, (sent, received) = two_processes(program, "-x", "1", "-F", "-n", "200", "-q", str(queue_pairs), *size)
    messages = 200 * queue_pairs
    assert re.search(rf"^ {size[1] if size else 8}\s+{messages}\s", said, re.MULTILINE), said
    assert sent == received
    if program in ("ib_write_bw", "ib_send_bw"):
        assert sent >= messages * 65536


def test_counters_are_read_as_files_by_any_program():
    with preloaded(1) as environment:
        assert counter_of(environment, "mlx5_0", "port_xmit_data") == 0
        write = (
            "import numpy as np, rdmakit; from rdmakit.device import connected_pair\n"
            "with rdmakit.open('mlx5_0') as a, rdmakit.open('mlx5_0') as b:\n"
            "    near, far = connected_pair(a, b); here = near.pd.register(np.ones(100_000, np.uint8))\n"
            "    there = far.pd.register(np.zeros(100_000, np.uint8), 'local_write|remote_write')\n"
            "    near.post_write(here, there.remote())\n"
            "    near.send_cq.wait()\n"
        )
        subprocess.run([sys.executable, "-c", write], env={**environment, "PYTHONPATH": str(ROOT)}, check=True)
        sent = 4 * counter_of(environment, "mlx5_0", "port_xmit_data")  # of a process that has ended
        assert 100_000 <= sent < 110_000


def test_posting_by_the_array_is_checked_and_compared():
    from rdmakit.cli.bench_post import GAINS, measure

    result = measure(repetitions=20)
    figures = result["figures"]
    assert result["ok"], "every byte and every completion is right"
    assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures
    absent = result["config"]["absent"]
    for name, suffix in (("pyverbs", ""), ("ibverbs", "_ibverbs")):
        assert (f"ns_per_wr_{name}" in figures) != (name in absent), "a figure, or why there is none"
        for way, (gain, cost) in itertools.product(("", "_direct"), GAINS.items()):
            assert cost + way in figures and (gain + way + suffix in figures) == (name not in absent)
            if name not in absent:  # how much it is, is for `rdmakit bench post` on an idle machine to say
                expected = figures[f"{cost}_{name}"] / figures[cost + way]
                assert figures[gain + way + suffix] == pytest.approx(expected)


def test_posting_is_compared_on_devices_that_are_named():
    command = [sys.executable, "-m", "rdmakit", "bench", "post", "--repetitions", "5", "--json", "--devices"]
    done = run([*command, "mlx5_1"])
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["ok"] and result["config"]["devices"] == ["mlx5_1"], done
    assert result["device"] == "mlx5_1" and result["figures"]["ns_per_read_direct"] > 0
    done = run([*command, "mlx5_0,mlx5_7"])
    assert done.returncode and "mlx5_7" in done.stderr and "mlx5_0, mlx5_1" in done.stderr
    done = run([*command, "mlx5_0,mlx5_1,mlx5_0"])
    assert done.returncode and "two ends" in done.stderr


def test_bindings_that_are_there_and_do_not_run_say_why(tmp_path, monkeypatch):
    """As the `ibverbs` wheel without libibverbs does: the reason is its own, not "not installed"."""
    from rdmakit.cli import bench_post

    (tmp_path / "broken_bindings.py").write_text('raise ImportError("libibverbs.so.1: cannot open")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken, none = (bench_post.Other(name, f"{name}_bindings", "", f"install {name}") for name in ("broken", "no"))
    assert bench_post._python_with(broken) == (
        None, "broken does not run here: ImportError: libibverbs.so.1: cannot open"
    )  # fmt: skip
    assert bench_post._python_with(none) == (None, "no is not installed: install no")
