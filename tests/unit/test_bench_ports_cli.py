"""`rdmakit bench ports`: what it says when it cannot run, how bytes are checked, and how a phase ends."""

import argparse
import contextlib
import sys
import threading

import numpy as np
import pytest
from connect_rig import results

from rdmakit.cli import bench, bench_ports, main
from rdmakit.cli.bench_ports_traffic import Lane, Load, drive, payload, poison, wrong_slots
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.verbs.batch import SEND_WR

LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID",
             "SLURM_NTASKS", "PMI_RANK", "PMI_SIZE")  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "where do the two hosts meet"),
        (["--meet", "file:{}"], "which rank of how many"),
        (["--meet", "nowhere", "--rank", "0", "--ranks", "2"], "no place to meet"),
        (["--meet", "file:{}", "--rank", "0", "--ranks", "2", "--timeout", "0.2", "--seconds", "0.1", "--warm-up", "0"],
         "rank 0 waited for rank 1"),
        (["--meet", "file:{}", "--rank", "0", "--ranks", "1"], "between two hosts"),
        (["--size", "100"], "no such message"), (["--batch", "0"], "no such batches"),
        (["--depth", "65"], "no such batches"), (["--seconds", "0"], "no such measurement"),
        (["--limit-bytes", "1"], "no such measurement"), (["--qps", "0"], "no such --qps"),
        (["--rounds", "0"], "no such --rounds"), (["--least", "-1"], "no such --least"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_so(tmp_path, capsys, given, said):
    words = [word.format(tmp_path / "here") for word in given]
    assert main(["bench", "ports", "--devices", "emu", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "remedy" in error


def test_ranks_of_a_launcher_meet_by_its_own_means(monkeypatch):
    """torchrun's store, else mpi4py, each named when it is missing; --meet needs neither."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", "ports"])

    class Comm:
        def Get_rank(self):
            return 0

        Get_size = Get_rank

        def allgather(self, value):
            return [value]

    module = type("MPI", (), {"COMM_WORLD": type("Solo", (Comm,), {"Get_size": lambda self: 1})()})
    monkeypatch.setitem(sys.modules, "mpi4py", type("mpi4py", (), {"MPI": module}))
    with bench_ports.meeting_of(args, 5.0) as meeting:
        assert (meeting.rank, meeting.size) == (0, 1) and meeting.all_gather(7) == [7]
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(NotAvailable, match="mpi4py is missing"), bench_ports.meeting_of(args, 5.0):
        pass


def test_ranks_of_torchrun_meet_in_its_store(monkeypatch):
    kept = {}

    class Store:
        def set(self, key, value):
            kept[key] = value.encode()

        def get(self, key):
            return kept[key]

        def check(self, keys):
            return all(key in kept for key in keys)

        def add(self, key, number):
            kept[key] = kept.get(key, 0) + number
            return kept[key]

    monkeypatch.setattr("rdmakit.cli.doctor.meeting.torch_store", lambda of: Store())
    monkeypatch.setenv("WORLD_SIZE", "2")
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", "ports"])
    guard = threading.Lock()  # the environment is one for both ranks

    def rank(number):
        with guard:
            monkeypatch.setenv("RANK", str(number))
            with contextlib.ExitStack() as keep:
                meeting = keep.enter_context(bench_ports.meeting_of(args, 5.0))
                closing = keep.pop_all()
        told = meeting.all_gather(number)
        closing.close()
        return told

    assert results(2, rank) == [[0, 1], [0, 1]]


# ---- a queue pair that copies when it is polled
class Wire:
    """Stands for a queue pair and its CQ: `loses` WRITEs by number, `fails` at one with a status, or is silent."""

    def __init__(self, source, target, loses=(), fails=None, silent_from=None):
        self.source, self.target = source, target
        self.loses, self.fails, self.silent_from = loses, fails, silent_from
        self.queue, self.number = [], 0

    def post_send(self, requests):
        assert requests.dtype == SEND_WR
        self.queue += [(int(row["address"]), int(row["length"])) for row in requests]

    def poll(self, into):
        done = 0
        while self.queue and done < len(into):
            if self.silent_from is not None and self.number >= self.silent_from:
                break
            at, length = self.queue.pop(0)
            into[done]["status"] = 12 if self.fails == self.number else 0
            if self.number not in self.loses:
                self.target[at : at + length] = self.source[at : at + length]
            self.number, done = self.number + 1, done + 1
        return done


def rig(load, **wire):
    """One lane over memory of its own; its addresses are offsets."""
    source, target = payload(load, 3, 1, 0), np.zeros(load.region, np.uint8)
    poison(target)
    requests, stamps = [], []
    for slot in range(load.depth):
        rows = np.zeros(load.batch, SEND_WR)
        rows["address"] = slot * load.slot + load.size * np.arange(load.batch)
        rows["length"] = load.size
        requests.append(rows)
        stamps.append(source.view(np.uint64)[slot * load.slot // 8 :][: load.slot // 8 : load.size // 8])
    end = Wire(source, target, **wire)
    return Lane(0, end, end, requests, stamps), target


SMALL = Load(size=64, batch=4, depth=3, seconds=0.02, warm_up=0.01, patience_s=0.2)


@pytest.mark.parametrize("most", [1 << 30, 256, 512, 768 * 5])
def test_what_arrived_last_is_right_whatever_ended_the_phase(most):
    load = Load(64, 4, 3, 0.02, 0.01, most, 0.2)
    lane, target = rig(load)
    window = drive([lane], load, 1)
    assert not window.failed and window.gbs > 0 and window.posted == [lane.posted]
    assert lane.posted * load.slot <= most and lane.done == lane.posted * load.batch
    assert wrong_slots(target, load, window.posted, 3, 1, [0]) == []
    if most <= 512:
        assert window.arrived == [most], "all that was posted, where the window never opened"


@pytest.mark.parametrize("seconds", [1e-6, 60.0])
def test_a_phase_by_bytes_has_as_many_on_each_queue_pair_whatever_the_time(seconds):
    load = Load(64, 4, 3, seconds, 0.0, 5 * 256, 0.2, qp_bytes=5 * 256)
    rigs = [rig(load) for _ in range(3)]
    for path, (lane, _) in enumerate(rigs):
        lane.path = path
    window = drive([lane for lane, _ in rigs], load, 3)
    assert window.posted == [5, 5, 5] and window.arrived == [5 * 256] * 3 and not window.failed
    assert window.gbs == pytest.approx(3 * 5 * 256 / window.seconds / 1e9)
    for _, target in rigs:
        assert wrong_slots(target, load, [5], 3, 1, [0]) == []


def test_a_lost_write_and_one_too_many_are_found():
    lane, target = rig(SMALL, loses=range(5, 1 << 30))
    window = drive([lane], SMALL, 1)
    assert window.posted[0] > 3
    found = wrong_slots(target, SMALL, window.posted, 3, 1, [0])
    assert any("queue pair 0, slot 1" in each for each in found)
    lane, target = rig(SMALL)
    window = drive([lane], SMALL, 1)
    target[2 * SMALL.slot + 70] ^= 1
    assert len(wrong_slots(target, SMALL, window.posted, 3, 1, [0])) == 1
    assert wrong_slots(target, SMALL, [1], 3, 1, [0]), "written where nothing should have been"
    assert wrong_slots(target, SMALL, [window.posted[0] - 1], 3, 1, [0]), "one batch more than was posted"


def test_a_queue_pair_that_breaks_or_falls_silent_ends_its_path_alone():
    broken, _ = rig(SMALL, fails=9)
    well, target = rig(SMALL)
    well.path = 1
    window = drive([broken, well], SMALL, 2)
    assert window.failed == {0: "RETRY_EXC_ERR"} and window.arrived[1] > 0
    assert wrong_slots(target, SMALL, window.posted[1:], 3, 1, [0]) == []
    silent, _ = rig(SMALL, silent_from=6)
    assert "no completion for 0.2 s" in drive([silent], SMALL, 1).failed[0]


def test_a_load_is_checked():
    with pytest.raises(BadArgument, match="no such message"):
        Load(size=12)
    for amount, nearest in ((-1, 256), (100, 256), (1000, 768), (1 << 20, 1 << 16)):
        with pytest.raises(BadArgument, match=f"whole batches of 4 x 64 = 256 B.*--qp-bytes {nearest}$"):
            Load(size=64, batch=4, most_bytes=1 << 16, qp_bytes=amount)
    assert Load(size=64, batch=4, depth=3).region == 768
