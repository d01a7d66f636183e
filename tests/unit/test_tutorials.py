"""The tutorials run as scripts: status 0, what they promise on the screen, and a word about what is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.emu.uverbs import missing

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "tutorials"
MOST_LINES = 80
RECORDER = "record_routing.py"  # trains a model: minutes, and PyTorch
TWO_HOSTS = "torchrun_two_hosts.py"
PROMISED = {
    "first_write.py": ("opcode=RDMA_WRITE", "op_own=REQ/", "✓ in the far host's memory"),
    "put_signal_from_a_kernel.py": ("ATOMIC_FA index 1", "doorbells 1, WQEs 2", "✓ the signal came behind"),
    "explore_your_protocol.py": (
        "nothing made that write visible to it in time",
        "in_order held over",
        "✓ caught, and mended",
    ),
    "embed_the_headers.py": ("40 WQEs", "20 signals", "✓ emulator"),
    "two_emulated_gpus.py": ("rank 1 of 2", "received after", "(modelled)", "✓ every sum is right"),
    TWO_HOSTS: ("no torchrun here", "basic blocks posted by port", "✓ all is NumPy's, bit for bit"),
    "torchrun_two_gpus.py": ("no GPU: the CPU runner", "rank 1 of 2", "✓ every sum is right"),
    "read_a_trace.py": ("doorbell → fetched", "executed → CQE", "ui.perfetto.dev"),
    # What they do on two hosts, tests/lab/test_lab_tutorials.py sees.
    "two_hosts_of_the_lab.py": ("this is for two hosts: rdmakit lab --host each",),
    "both_ports.py": ("this is for two hosts: rdmakit lab --host each",),
    "deepep_program.py": ("kernels on the CPU runner", "rank 1 of 2", "✓ every sum is right"),
}


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # A script has its own folder on its path, not the project's: without this, an installed rdmakit would be tested.
    path = os.pathsep.join(filter(None, (environment.pop("first", ""), str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, str(TUTORIALS / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **environment},
    )


def without(tmp_path: Path, module: str) -> str:
    """A folder whose `module` cannot be imported, to be put first on the path."""
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module} in this test')\n")
    return str(tmp_path)


def test_every_tutorial_is_run_here():
    assert {path.name for path in TUTORIALS.glob("*.py")} == {*PROMISED, RECORDER}


@pytest.mark.parametrize("name", PROMISED)
def test_is_short(name: str):
    lines = (TUTORIALS / name).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES


@pytest.mark.parametrize("name", PROMISED)
def test_runs_and_holds(name: str):
    if name == TWO_HOSTS and missing():
        pytest.skip(missing())
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in PROMISED[name]:
        assert text in done.stdout, done.stdout
    assert "✗" not in done.stdout
    assert not done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("name", ["deepep_program.py", TWO_HOSTS])
def test_torchrun_starts_ranks_that_share_memory(name: str):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    done = subprocess.run(
        [*command, str(TUTORIALS / name)], capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "RDMAKIT_KERNELS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"rank {rank} of 4" in done.stdout for rank in range(4)), done.stdout
    assert done.stdout.count("✓") == 4 and "4 ranks of one host share memory" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_of_torchrun_without_gpus_one_rank_does_the_work():
    first, second = (run("torchrun_two_gpus.py", RANK=rank, WORLD_SIZE="2") for rank in ("0", "1"))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "✓ every sum is right" in first.stdout and second.stdout == ""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_embedding_says_why_it_skips_cupy():
    assert "– cupy skipped: CuPy is not installed: pip install 'rdmakit[gpu]'" in run("embed_the_headers.py").stdout


def test_embedding_without_nvrtc_skips_it(tmp_path: Path):
    done = run("embed_the_headers.py", first=without(tmp_path, "cuda"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "– nvrtc skipped: no cuda in this test: pip install cuda-bindings nvidia-cuda-nvrtc" in done.stdout


def test_a_wrong_result_is_no_success(tmp_path: Path):
    wrong = (TUTORIALS / "embed_the_headers.py").read_text(encoding="utf-8").replace("2 * in[", "3 * in[")
    script = tmp_path / "wrong.py"
    script.write_text(wrong, encoding="utf-8")
    done = run(str(script))
    assert done.returncode == 1 and "✗ emulator" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_recorder_explains_itself():
    done = run(RECORDER, "--help")
    assert done.returncode == 0 and "--out" in done.stdout and "--steps" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_recorder_without_torch_says_how_to_get_it(tmp_path: Path, arguments: tuple[str, ...]):
    done = run(RECORDER, *arguments, first=without(tmp_path, "torch"))
    assert done.returncode == 1
    assert 'pip install "rdmakit[record]"' in done.stderr and "Traceback" not in done.stderr, done.stderr
