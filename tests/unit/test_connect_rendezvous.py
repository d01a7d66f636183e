"""Ranks meet in directories, over TCP, in torch's stores and over MPI; and nobody waits for ever, or unnamed."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from connect_rig import every_rank, results

from rdmakit.connect import FileStore, MpiRendezvous, StoreRendezvous, TcpStore, meet
from rdmakit.connect.values import from_text, to_text
from rdmakit.errors import BadArgument, PeerMismatch, RankMissing

ROOT = Path(__file__).resolve().parents[2]


class FakeTorchStore:
    """What TorchStore uses of torch.distributed.Store, with its habits: bytes come back, add counts."""

    def __init__(self):
        self.values, self.counts, self.guard = {}, {}, threading.Lock()

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)

    def add(self, key, amount):
        with self.guard:
            self.counts[key] = self.counts.get(key, 0) + amount
            return self.counts[key]

    def delete_key(self, key):
        return self.values.pop(key, None) is not None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["file", "tcp", "torch"])
def where(request, tmp_path):
    return {"file": f"file:{tmp_path}/meeting", "tcp": f"tcp:127.0.0.1:{free_port()}", "torch": FakeTorchStore()}[
        request.param
    ]


def test_values_of_all_ranks_arrive_in_order_turn_after_turn(where, rng):
    told = [[bytes(rng.integers(0, 256, 40, np.uint8)), {"n": int(rng.integers(1 << 50))}] for _ in range(3)]

    def rank(number):
        meeting = meet(where, number, 3, timeout_s=20)
        found = [meeting.all_gather([turn, *told[number]]) for turn in range(5)]
        meeting.barrier()
        assert meeting.all_gather(None) == [None] * 3
        meeting.close()
        return found

    for found in results(3, rank):
        assert found == [[[turn, *told[r]] for r in range(3)] for turn in range(5)]


def test_processes_meet_in_a_directory_and_leave_nothing(tmp_path):
    program = (
        "import sys; from rdmakit.connect import meet\n"
        "m = meet('file:' + sys.argv[1], int(sys.argv[2]), 3, timeout_s=30)\n"
        "found = [m.all_gather([m.rank, turn]) for turn in range(3)]\n"
        "m.close(); print(found)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "here"), str(rank)], stdout=subprocess.PIPE,
                         text=True, cwd=ROOT)
        for rank in range(3)
    ]  # fmt: skip
    said = [json.loads(each.communicate(timeout=60)[0]) for each in running]
    assert said == [[[[rank, turn] for rank in range(3)] for turn in range(3)]] * 3
    assert not (tmp_path / "here").exists()


def test_who_did_not_come_is_named_and_by_whom_it_was_waited_for(where):
    began = time.monotonic()
    errors = every_rank(2, lambda r: meet(where, r, 4, timeout_s=0.5).all_gather(r))
    assert time.monotonic() - began < 10
    for rank, error in enumerate(errors):
        assert isinstance(error, RankMissing) and isinstance(error, TimeoutError) and error.ranks == (2, 3)
        assert f"rank {rank} waited for ranks 2, 3" in str(error) and error.remedy


def test_numbers_of_ranks_that_differ(tmp_path):
    errors = every_rank(2, lambda r: meet(f"file:{tmp_path}", r, 2 + r, timeout_s=2).all_gather(r))
    assert any(isinstance(e, PeerMismatch) and "how many they are" in str(e) for e in errors), errors


def test_one_rank_twice_and_leftovers_of_an_earlier_run(tmp_path):
    results(2, lambda r: meet(f"file:{tmp_path}", r, 2).all_gather(r))
    with pytest.raises(PeerMismatch, match="rank 1 is there already") as caught:
        meet(f"file:{tmp_path}", 1, 2).all_gather(1)
    assert "emptied" in caught.value.remedy


def test_who_serves_and_fails_lets_the_others_read_why():
    code = (
        "import sys, time; from rdmakit.connect.stores import TcpStore\n"
        "store = TcpStore('127.0.0.1', 0, serve=True); store.put('why', 'numbers differ')\n"
        "print(store.port, flush=True)\n"
        "while store.get('here') is None: time.sleep(0.01)\n"
        "sys.exit(2)"
    )
    for others in (1, 0):
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        store = TcpStore("127.0.0.1", int(server.stdout.readline()), serve=False)
        store.put("here", "yes")
        if others:
            time.sleep(0.5)  # it would be gone by now
            assert store.get("why") == "numbers differ"
        store.close()
        began = time.monotonic()
        assert server.wait(10) == 2 and time.monotonic() - began < 2.5, "it waits for nobody who has left"


def test_nobody_listens_and_who_served_has_gone():
    with pytest.raises(RankMissing, match="nobody listens") as caught:
        meet(f"tcp:127.0.0.1:{free_port()}", 1, 2, timeout_s=0.2)
    assert caught.value.ranks == (0,)
    serving = TcpStore("127.0.0.1", 0, serve=True)
    other = StoreRendezvous(TcpStore("127.0.0.1", serving.port, serve=False), 1, 2, timeout_s=5)
    other.store._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(RankMissing, match="has gone"):
        other.all_gather(0)
    serving.close()


class Comm:
    """Two ends of an mpi4py communicator in one process, as far as it is used: isend, improbe, recv."""

    def __init__(self, boxes, rank, deaf=()):
        self.boxes, self.rank, self.deaf = boxes, rank, deaf

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return len(self.boxes)

    def allgather(self, value):
        raise AssertionError("it would wait without an end")

    def isend(self, value, dest, tag):
        if self.rank not in self.deaf:
            self.boxes[dest].append((self.rank, tag, value))
        return self

    def wait(self):
        return None

    def improbe(self, source, tag):
        for message in self.boxes[self.rank]:
            if message[:2] == (source, tag):
                self.boxes[self.rank].remove(message)
                self.found = message[2]
                return self
        return None

    def recv(self):
        return self.found


def test_mpi_ranks_meet_and_a_silent_one_is_named():
    boxes = [[], [], []]
    meetings = [MpiRendezvous(Comm(boxes, r), timeout_s=10) for r in range(3)]
    assert (
        results(3, lambda r: [meetings[r].all_gather((r, turn)) for turn in range(2)])
        == [[[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]] * 3
    )
    boxes = [[], []]
    errors = every_rank(2, lambda r: meet(Comm(boxes, r, deaf=(1,)), timeout_s=0.3).all_gather(r))
    assert [type(e) for e in errors] == [RankMissing] * 2 and errors[0].ranks == (1,)


@pytest.mark.parametrize("text", ["file:", "tcp:host", "tcp::12", "tcp:a:70000", "nowhere"])
def test_places_that_are_none(text):
    with pytest.raises(BadArgument, match="no place to meet"):
        meet(text, 0, 1)


def test_bad_ranks_and_values(tmp_path):
    for rank, size in ((2, 2), (-1, 2), (0, 0), (None, 2), (0, None)):
        with pytest.raises(BadArgument):
            meet(f"file:{tmp_path}", rank, size)
    with pytest.raises(BadArgument, match="cannot exchange"):
        meet(f"file:{tmp_path}", 0, 1).all_gather(object())
    with pytest.raises(BadArgument, match="no store"):
        meet(object(), 0, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadArgument, match="no directory"):
        FileStore(tmp_path / "file" / "below")


def test_what_is_read_is_data_and_never_code():
    value = {"a": b"\x00\xff", "b": [1, None, "x", (2, 3)], "c": np.int64(7)}
    assert from_text(to_text(value)) == {"a": b"\x00\xff", "b": [1, None, "x", [2, 3]], "c": 7}
