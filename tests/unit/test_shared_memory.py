"""Memory that processes share: mapped by who is told, refused where it cannot be, gone with the last of them."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rdmakit.emu.shared_memory import SharedMemory, map_shared
from rdmakit.errors import BadArgument, NotAvailable

CHILD = """
import sys
from rdmakit.emu.shared_memory import SharedMemory
memory = SharedMemory(10000, "child's")
memory.array[:] = 7
print(*memory.told.values(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def child():
    """A process that shares memory, and what it tells."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        numbers = [int(word) for word in process.stdout.readline().split()]
        yield process, dict(zip(("pid", "file", "device", "inode", "nbytes"), numbers, strict=True))
    finally:
        process.kill()
        process.communicate()


def ours():
    """Mappings and descriptors of this process that are ours; names in /dev/shm."""
    with open("/proc/self/maps") as maps:
        mapped = sum("rdmakit" in line for line in maps)
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    named = [name for name in os.listdir("/dev/shm") if "rdmakit" in name]
    return mapped, sum("rdmakit" in os.readlink(link) for link in links if os.path.islink(link)), named


def test_another_process_reads_and_writes_it(rng):
    with child() as (process, told):
        there = map_shared(told, "child's")
        assert there.nbytes == 10000 and (there == 7).all()
        there[:] = rng.integers(0, 256, 10000, np.uint8)
        before = there.copy()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert np.array_equal(there, before), "memory went with who had made it"
        with pytest.raises(NotAvailable, match=rf"the heap cannot be mapped .value /proc/{process.pid}/fd/"):
            map_shared(told, "heap")


def test_a_file_that_is_another_one(tmp_path):
    with child() as (_, told):
        for key in ("device", "inode", "nbytes"):
            with pytest.raises(NotAvailable, match="is another file"):
                map_shared({**told, key: told[key] + 1}, "heap")
        with pytest.raises(NotAvailable, match="No such file"):
            map_shared({**told, "file": 999}, "heap")


def test_nothing_is_left():
    gc.collect()
    before = ours()
    memory = SharedMemory(1 << 20, "words")
    there = map_shared(memory.told, "words")
    assert ours()[0] == before[0] + 2 and ours()[2] == before[2]
    there[:8] = 1
    mine = memory.array
    del memory, there
    gc.collect()
    assert mine[:9].tolist() == [1] * 8 + [0]
    del mine
    gc.collect()
    assert ours() == before


def test_it_cannot_be_made_shorter_under_others():
    memory = SharedMemory(8192, "words")
    for nbytes in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.told["file"], nbytes)


def test_it_comes_when_it_is_touched():
    began = time.monotonic()
    memory = SharedMemory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, "half of this machine's")
    memory.array[-1] = 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("nbytes", [0, -1, 1.5, True, None])
def test_no_size(nbytes):
    with pytest.raises(BadArgument, match="no size for the heap"):
        SharedMemory(nbytes, "heap")


@pytest.mark.parametrize("nbytes", [1 << 48, 1 << 62, 1 << 70])
def test_more_than_there_is(nbytes):
    before = ours()
    with pytest.raises(BadArgument, match=rf"no memory for the heap .value {nbytes} bytes") as caught:
        SharedMemory(nbytes, "heap")
    assert "the memory of this machine" in str(caught.value)
    del caught
    gc.collect()
    assert ours() == before
