"""Two processes, one queue pair in each: everything that one process does with itself, and what becomes of the dead."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from other_end import Side

from rdmakit.errors import CompletionError

HERE = Path(__file__).parent


class Other:
    """The other end, in a process of its own."""

    def __init__(self, device, nbytes):
        command = [sys.executable, str(HERE / "other_end.py"), device, str(nbytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.introduction = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, f"the other end ended: {self.process.wait(timeout=30)}"
        return json.loads(line)

    def ask(self, do, **arguments):
        self.start(do, **arguments)
        return self._answer()

    def start(self, do, **arguments):
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def sides(devices, request):
    """(this end, the other end), connected; both with `request.param` bytes of memory."""
    with contextlib.ExitStack() as stack:
        nbytes = getattr(request, "param", 4096)
        here = stack.enter_context(contextlib.closing(Side(devices[0], nbytes)))
        other = Other(devices[1], nbytes)
        stack.callback(other.end)
        here.meet(other.introduction)
        other.ask("meet", peer=here.introduction())
        yield here, other


def expected(seed, nbytes):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


@pytest.mark.parametrize("sides", [1, 4096, 3_000_001], indirect=True)
def test_writes_and_reads_carry_every_byte(sides, seed):
    here, other = sides
    size = here.mr.bytes.size
    here.fill(seed)
    assert here.write() == "ok"
    assert other.ask("content") == expected(seed, size).tobytes().hex()
    other.ask("fill", seed=seed + 1)
    here.qp.post_read(here.mr[:], here.peer)
    here.cq.wait()
    assert np.array_equal(here.mr.bytes, expected(seed + 1, size))
    other.ask("fill", seed=seed + 2)
    assert other.ask("write") == "ok"  # and the other way
    assert np.array_equal(here.mr.bytes, expected(seed + 2, size))


def test_a_send_waits_until_there_is_a_receive(sides, seed):
    here, other = sides
    here.fill(seed)
    here.qp.post_send(here.mr[:])
    time.sleep(0.1)
    assert not here.cq.poll(), "completed before anything was received"
    other.ask("receive")
    assert here.cq.wait()[0].ok
    assert other.ask("received") == 4096
    assert other.ask("content") == expected(seed, 4096).tobytes().hex()


def test_many_messages_stay_in_order(sides, rng):
    here, other = sides
    words = rng.integers(0, 256, (60, 64), np.uint8)
    source, landing = here.qp.pd.register(words.copy()), here.qp.pd.register(np.zeros(1, np.uint64))
    for index in range(60):  # all to one place: the last one stays
        here.qp.post_write(source[index * 64 : index * 64 + 64], here.peer.slice(0, 64), wr_id=index)
        if index % 3 == 0:
            here.qp.post_fetch_add(landing[:], here.peer.slice(1024, 8), 1, wr_id=-1)
    done = [c.wr_id for c in here.cq.wait(80)]
    assert [w for w in done if w >= 0] == list(range(60))
    content = np.frombuffer(bytes.fromhex(other.ask("content")), np.uint8)
    assert np.array_equal(content[:64], words[59])
    start = int.from_bytes(b"\xa5" * 8, "little")
    assert int.from_bytes(content[1024:1032].tobytes(), "little") == start + 20


def test_atomics_of_another_process_add_up(sides, rng):
    here, other = sides
    value, times = int(rng.integers(1, 1 << 40)), 50
    here.mr.bytes[:8] = 0  # the other end adds, while this one watches the sum grow
    word = here.mr.bytes[:8].view(np.uint64)
    other.start("add", value=value, times=times)
    seen = [0]
    until = time.monotonic() + 60
    while word[0] != value * times and time.monotonic() < until:
        if word[0] != seen[-1]:
            seen.append(int(word[0]))
    assert other._answer() is None
    assert word[0] == value * times
    assert all(total % value == 0 for total in seen), "a torn sum"


def test_a_key_that_the_other_process_does_not_have(sides, seed):
    here, other = sides
    here.qp.post_write(here.mr[:], (here.peer.address, here.peer.rkey ^ 0x5A00))
    with pytest.raises(CompletionError, match="REM_ACCESS"):
        here.cq.wait()
    assert other.ask("content") == "a5" * 4096


def test_a_peer_that_dies_is_an_error_in_bounded_time(sides, seed):
    here, other = sides
    assert here.write() == "ok"
    other.end()
    began = time.monotonic()
    here.qp.post_write(here.mr[:], here.peer)
    with pytest.raises(CompletionError, match="RETRY_EXC"):
        here.cq.wait(timeout=60.0)
    assert time.monotonic() - began < 30


def test_a_peer_that_dies_while_a_message_is_under_way(sides, seed):
    here, other = sides
    here.qp.post_send(here.mr[:])  # nobody receives it
    time.sleep(0.05)
    other.end()
    with pytest.raises(CompletionError, match="RETRY_EXC"):
        here.cq.wait(timeout=60.0)


def left_behind():
    """Files of ours: in shared memory, and in the tree of emulated devices."""
    shared = [name for name in os.listdir("/dev/shm") if "rdmakit" in name] if Path("/dev/shm").exists() else []
    tree = os.environ.get("SYSFS_PATH", "")
    return sorted(shared), sorted(str(path) for path in Path(tree).rglob("*")) if tree else []


def test_the_dead_leave_nothing_behind(devices):
    before = left_behind()
    for _ in range(3):
        Other(devices[1], 4096).end()
    assert left_behind() == before
