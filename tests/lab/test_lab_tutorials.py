"""The tutorials for two hosts, as `rdmakit lab --host each` runs them."""

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

import pytest
from two_hosts import on_both

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
PROMISED = {
    "two_hosts_of_the_lab.py": (
        ("h0r0, proxied queues", "from UDP port 0xc001", "rank 1 was here", "✓ sent as tickets: [0, 1, 2]"),
        ("h1r0, proxied queues", "from UDP port 0xc002", "rank 0 was here", "✓ received in order: [b'the first"),
    ),
    "both_ports.py": (("channel 7: port", "✓ every byte is there, and the ports are loaded alike"),) * 2,
}


def run(host, name):
    """Its exit status and what it printed, in this process: an emulated processor takes long to start another."""
    os.environ.update(RANK=str(host.number), WORLD_SIZE="2", MASTER_ADDR="10.9.0.1", MASTER_PORT="29500")
    sys.path.insert(0, str(TUTORIALS))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TUTORIALS / name), run_name="__main__")
    return ended.value.code, said.getvalue()


@pytest.mark.parametrize("name", PROMISED)
def test_on_both_hosts(name):
    for (status, said), promised in zip(on_both(*[lambda host: run(host, name)] * 2), PROMISED[name], strict=True):
        assert status == 0, said
        for text in promised:
            assert text in said, said
