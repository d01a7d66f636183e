"""The tutorials for two hosts, run as `rdmakit lab --host each` runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "two_hosts_of_the_lab.py": (
        ("h0r0, proxied queues", "from UDP port 0xc001", "rank 1 was here", "✓ sent as tickets: [0, 1, 2]"),
        ("h1r0, proxied queues", "from UDP port 0xc002", "rank 0 was here", "✓ received in order: [b'the first"),
    ),
    "both_ports.py": (("channel 7: port", "✓ every byte is there, and the ports are loaded alike"),) * 2,
}


@pytest.mark.parametrize("name", PROMISED)
def test_on_both_hosts(name):
    ranks = []
    for rank in (0, 1):
        environment = {
            "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.9.0.1", "MASTER_PORT": "29500",
            "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8",
        }  # fmt: skip
        command = ["ip", "netns", "exec", f"h{rank}", sys.executable, str(ROOT / "tutorials" / name)]
        ranks.append(
            subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, encoding="utf-8")
        )  # fmt: skip
    try:
        said = [process.communicate(timeout=100)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, process in enumerate(ranks):
        assert process.returncode == 0, said[rank]
        for text in PROMISED[name][rank]:
            assert text in said[rank], said[rank]
