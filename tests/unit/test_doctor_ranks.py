"""Many ranks at once: who launched them, what they agree on, which pairs reach each other by which rail."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from machine_tree import Host

from rdmakit.cli.doctor.check import Check, Result, failed, passed, skipped
from rdmakit.cli.doctor.launch import Launched, launched
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.meeting import MpiMeeting, StoreMeeting, meeting
from rdmakit.cli.doctor.pairs import Place, Reach, Unreached, reach
from rdmakit.cli.doctor.ranks import agreement, examine_all, merged, rails_of, reachability, table
from rdmakit.emu.uverbs import missing, preloaded
from rdmakit.errors import BadArgument, HangError, NotAvailable

ROOT = Path(__file__).resolve().parents[2]


# ---- who launched them
@pytest.mark.parametrize("environment, found", [
    ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launched("torchrun", 1, 4, 1)),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
     Launched("Open MPI", 2, 4, 0)),
    ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, Launched("MPI", 0, 2, 0)),
    ({"SLURM_PROCID": "7", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3"}, Launched("Slurm", 7, 8, 3)),
    # torchrun inside of a Slurm job of one task a node
    ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
     Launched("torchrun", 9, 16, 1)),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    ({}, None),
])  # fmt: skip
def test_launchers_are_known_by_their_variables(environment, found):
    assert launched(environment) == found


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}])
def test_half_a_launcher_is_refused(environment):
    with pytest.raises(BadArgument):
        launched(environment)


def test_ranks_of_mpi_need_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(NotAvailable, match="mpi4py is missing"), meeting(Launched("Slurm", 0, 2, 0)):
        pass


def test_ranks_without_a_place_to_meet_are_told(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadArgument, match="MASTER_ADDR"), meeting(Launched("torchrun", 0, 2, 0)):
        pass


class Store:
    """A store as torch.distributed's: `get` waits for what is not there yet, and gives up."""

    def __init__(self):
        self.values, self.changed, self.patience = {}, threading.Condition(), 300.0

    def set_timeout(self, patience):
        self.patience = patience.total_seconds()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def add(self, key, number):
        with self.changed:
            self.values[key] = self.values.get(key, 0) + number
            return self.values[key]

    def get(self, key):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, self.patience):
                raise RuntimeError(f"wait timeout for {key}")
            return self.values[key]


class Comm:
    """A communicator as mpi4py's, of ranks that are threads."""

    def __init__(self, store, rank, size):
        self.inner = StoreMeeting(store, rank, size)

    def Get_rank(self):
        return self.inner.rank

    def Get_size(self):
        return self.inner.size

    def allgather(self, value):
        return tuple(self.inner.all_gather(value))

    def alltoall(self, values):
        return tuple(self.inner.exchange(values))

    def Barrier(self):
        self.inner.barrier()


@pytest.mark.parametrize("kind", ["store", "mpi"])
@pytest.mark.parametrize("size", [2, 5])
def test_everybody_gets_what_was_meant_for_them(kind, size, rng):
    store, words = Store(), rng.integers(0, 1 << 30, (3, size, size))
    found = [None] * size

    def run(rank):
        met = StoreMeeting(store, rank, size) if kind == "store" else MpiMeeting(Comm(store, rank, size))
        assert (met.rank, met.size) == (rank, size)
        gathered = met.all_gather(words[0][rank].tolist())
        first = met.exchange(words[1][rank].tolist())
        met.barrier()
        found[rank] = gathered, first, met.exchange(words[2][rank].tolist())
        if kind == "store":
            met.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank in range(size):
        gathered, first, second = found[rank]
        assert gathered == words[0].tolist()
        assert first == words[1][:, rank].tolist() and second == words[2][:, rank].tolist()


def test_a_rank_that_does_not_come_is_named():
    met = StoreMeeting(Store(), 0, 3, patience_s=0.05)
    with pytest.raises(HangError, match="rank 1 did not come"):
        met.all_gather("here")


# ---- what they have
def test_a_rank_takes_the_nic_of_its_gpu(tmp_path):
    host = Host(tmp_path)
    machine = Machine(host.root)
    assert [rails_of(machine, local) for local in range(3)] == [[("mlx5_0", 1)], [("mlx5_1", 1)], [("mlx5_0", 1)]]
    assert rails_of(machine, 0, ["mlx5_1"]) == [("mlx5_1", 1)]
    with pytest.raises(BadArgument, match="mlx5_7"):
        rails_of(machine, 0, ["mlx5_7"])


def test_two_ports_for_one_gpu_are_two_rails(tmp_path):
    host = Host(tmp_path)
    (host.tree.root / "bus/pci/devices/0000:23:00.0").unlink()
    assert rails_of(Machine(host.root), 0) == [("mlx5_0", 1), ("mlx5_1", 1)]
    host.sys("class/infiniband/mlx5_0/ports/1/state", "1: DOWN")
    assert rails_of(Machine(host.root), 0) == [("mlx5_1", 1)]


def test_without_gpus_all_ports_are_rails(tmp_path):
    host = Host(tmp_path)
    host.no_gpus()
    assert rails_of(Machine(host.root), 1) == [("mlx5_0", 1), ("mlx5_1", 1)]


# ---- what they say together
def results(*answers):
    return [Result(Check(f"c{i}", "g", "S", lambda machine: skipped("")), answer) for i, answer in enumerate(answers)]


def test_the_gravest_verdict_of_all_ranks_counts_and_names_them():
    first = results(passed("up", n=1), skipped("no GPU"))
    second = results(failed("down", "ip link", n=0), skipped("no GPU"))
    third = results(failed("down", "ip link"), passed("two GPUs"))
    bad, gpus = merged([first, second, third])
    assert (bad.answer.verdict, bad.answer.said, bad.answer.remedy) == ("FAIL", "ranks 1-2: down", "ip link")
    assert bad.answer.facts == {"ranks": {"PASS": [0], "FAIL": [1, 2]}, "0": {"n": 1}, "1": {"n": 0}}
    assert (gpus.answer.verdict, gpus.answer.said) == ("PASS", "rank 2: two GPUs")
    assert merged([first, first])[0].answer.said == "up"


def place(rank, rail, mtu=4096):
    return Place(f"mlx5_{rail}/1", f"::ffff:10.{rail}.0.{rank + 1}", mtu, "Ethernet")


def reached_by(size, rails=2, unreached=(), refusals=None, mtus=None):
    places = tuple(tuple(place(rank, rail, (mtus or {}).get(rank, 4096)) for rail in range(rails))
                   for rank in range(size))  # fmt: skip
    return Reach(places, tuple(refusals or [""] * size), tuple(unreached))


def test_what_differs_between_ranks_is_named():
    same = [{"rdmakit": "0.1.0", "driver": "580.65"}] * 4
    assert agreement(same, reached_by(4)).verdict == "PASS"
    other = [*same[:3], {"rdmakit": "0.1.0", "driver": "570.1"}]
    answer = agreement(other, reached_by(4))
    assert answer.verdict == "WARN" and "driver 570.1 on rank 3, 580.65 elsewhere" in answer.said
    answer = agreement(same, reached_by(4, mtus={1: 1024, 2: 1024, 3: 1024}))
    assert answer.verdict == "WARN" and "mtu 4096 on rank 0, 1024 elsewhere" in answer.said


def test_ranks_that_have_nothing_are_not_compared():
    assert agreement([{"driver": ""}] * 2, Reach(((), ()), ("", ""), ())).verdict == "SKIP"
    assert agreement([{"driver": ""}] * 2, reached_by(2)).said == "rails, mtu, link_layer alike on all ranks"


LOST = "RETRY_EXC_ERR: no acknowledgement"


def test_pairs_that_every_kernel_joins_must_reach_each_other():
    locals_ = [0, 1, 0, 1]  # two hosts of two
    assert reachability(reached_by(4), locals_).verdict == "PASS"
    assert "24 WRITEs" in reachability(reached_by(4), locals_).said
    across = reachability(reached_by(4, unreached=[Unreached(0, 3, 1, LOST)]), locals_)
    assert across.verdict == "WARN" and "1 of 24" in across.said and "rank 0 (mlx5_0/1) → rank 3" in across.said
    same = reachability(reached_by(4, unreached=[Unreached(0, 3, 1, LOST), Unreached(0, 2, 2, LOST)]), locals_)
    assert same.remedy == "on rank 0's host: ping -M do -s 4096 -I 10.1.0.1 10.1.0.3"
    assert same.verdict == "FAIL" and "rank 0 (mlx5_1/1) → rank 2 (mlx5_1/1): RETRY_EXC_ERR" in same.said


def test_a_rank_that_reaches_nobody_fails_whatever_its_number():
    lost = [Unreached(1, peer, rail, LOST) for peer in (0, 2) for rail in (1, 2)]
    answer = reachability(reached_by(3, unreached=lost), [0, 1, 2])
    assert answer.verdict == "FAIL" and "rank 1 (mlx5_0/1) → rank 0" in answer.said
    assert reachability(reached_by(3, unreached=lost[1:]), [0, 1, 2]).verdict == "WARN"


def test_ranks_without_rails():
    bare = Reach(((), ()), ("", ""), ())
    assert reachability(bare, [0, 0]).verdict == "SKIP"
    assert reachability(Reach(((), ()), ("EACCES", ""), ()), [0, 0]).verdict == "FAIL"
    half = Reach(((place(0, 0),), ()), ("", "no such device"), ())
    answer = reachability(half, [0, 0])
    assert answer.verdict == "FAIL" and "rank 1 has no rail: no such device" in answer.said


def test_the_table_shows_by_which_rails(capsys):
    lost = [Unreached(0, 2, 2, LOST), Unreached(2, 1, 1, LOST), Unreached(2, 1, 2, LOST)]
    lines = table(reached_by(3, unreached=lost), ["a", "a", "b"])
    assert lines[0].split() == ["rank", "0", "a:", "1", "mlx5_0/1,", "2", "mlx5_1/1"]
    rows = [line.split() for line in lines[-3:]]
    assert rows == [["0", "-", "1+2", "1"], ["1", "1+2", "-", "1+2"], ["2", "1+2", "none", "-"]]


@pytest.mark.parametrize("size", [17, 24, 64])
def test_tables_of_many_ranks_count_rails_and_fit_a_wide_terminal(size):
    lines = table(reached_by(size, rails=2, unreached=[Unreached(1, 0, 1, LOST)]), ["h"] * size)
    rows = [line.split() for line in lines[-size:]]
    assert rows[1][1] == "1" and rows[0][1] == "-" and rows[0][2] == "2"
    assert max(map(len, lines)) <= 8 + 3 * size


def test_hundreds_of_ranks_have_no_table():
    assert "no table" in table(reached_by(65), ["h"] * 65)[-1]


# ---- for real: ranks as threads of one process, on emulated ConnectX under the distribution's libmlx5
PROGRAM = """
import json, sys, threading
from rdmakit.cli.doctor.asked import Asked
from rdmakit.cli.doctor.pairs import reach
from rdmakit.device import Endpoint

SABOTAGE, SIZE = sys.argv[1], int(sys.argv[2])
barrier, board = threading.Barrier(SIZE, timeout=60), [None] * SIZE

class Meeting:
    def __init__(self, rank):
        self.rank, self.size = rank, SIZE
    def all_gather(self, value):
        board[self.rank] = value
        barrier.wait()
        found = list(board)
        barrier.wait()
        return found
    def exchange(self, values):
        if self.rank == 1 and 1 in values[0]:  # what it offers to rank 0 for rail 1
            endpoint, address, rkey = values[0][1]
            if SABOTAGE == "rkey":
                values[0][1] = endpoint, address, rkey ^ 0xFF00
            if SABOTAGE == "qpn":
                values[0][1] = json.dumps({**json.loads(endpoint), "qpn": 0xABCDEF}), address, rkey
            if SABOTAGE == "address":
                values[0][1] = endpoint, address + 8, rkey
        return [each[self.rank] for each in self.all_gather(values)]
    def barrier(self):
        barrier.wait()

class Refusing(Asked):
    def open(self, name):
        if SABOTAGE == "open" and name == "mlx5_3":
            return super().open("mlx5_77")
        return super().open(name)

found = [None] * SIZE
def run(rank):
    rails = [(f"mlx5_{2 * rank}", 1), (f"mlx5_{2 * rank + 1}", 1)]
    found[rank] = reach(Meeting(rank), rails, Refusing()).to_dict()
threads = [threading.Thread(target=run, args=(rank,)) for rank in range(SIZE)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert all(each == found[0] for each in found), "all ranks know the same"
print(json.dumps(found[0]))
"""


@pytest.fixture
def run_ranks():
    if missing():
        pytest.skip(missing())
    entered = preloaded(8)
    environment = entered.__enter__()

    def run(sabotage, size=2):
        command = [sys.executable, "-c", PROGRAM, sabotage, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env={**environment, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    yield run
    entered.__exit__(None, None, None)


def test_every_rank_reaches_every_other_by_each_rail(run_ranks):
    found = run_ranks("nothing")
    assert found["tried"] == 4 and found["unreached"] == []
    names = [[place["name"] for place in places] for places in found["places"]]
    assert names == [[f"mlx5_{2 * rank}/1", f"mlx5_{2 * rank + 1}/1"] for rank in range(2)]
    assert {place["mtu"] for places in found["places"] for place in places} == {4096}


@pytest.mark.parametrize("sabotage, why", [
    ("rkey", "REM_ACCESS_ERR"), ("qpn", "RETRY_EXC_ERR"), ("address", "the bytes are not there"),
])  # fmt: skip
def test_a_rail_that_is_broken_is_named_and_the_other_is_not(run_ranks, sabotage, why):
    unreached = run_ranks(sabotage)["unreached"]
    first = unreached[0]
    assert (first["source"], first["target"], first["rail"]) == (0, 1, 2) and why in first["why"], unreached
    assert {each["rail"] for each in unreached} == {2}


def test_a_rank_that_cannot_open_its_device_holds_up_nobody(run_ranks):
    found = run_ranks("open")
    assert [len(places) for places in found["places"]] == [2, 0]
    assert "no such device" in found["refusals"][1] and found["refusals"][0] == ""
    assert found["tried"] == 0 and found["unreached"] == []


# ---- the command among ranks
class Alone:
    """A meeting of one rank that plays two: its twin says what it says."""

    rank, size = 0, 2

    def all_gather(self, value):
        return [value, value]

    def exchange(self, values):
        return list(values)

    def barrier(self):
        pass


def test_a_wrong_device_name_is_refused_on_all_ranks(tmp_path):
    machine = Machine(Host(tmp_path).root)
    with pytest.raises(BadArgument, match="mlx5_9"):
        examine_all(Alone(), machine, [], 0, ["mlx5_9"])


def test_ranks_without_devices_skip_the_meeting():
    found = reach(Alone(), [], None)
    assert found.places == ((), ()) and found.unreached == ()


def test_torchrun_gives_one_report_of_all_ranks(tmp_path):
    pytest.importorskip("torch", reason="pip install torch: ranks of torchrun meet through it")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rdmakit",
               "doctor", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1), done.stderr
    assert found["ranks"]["size"] == 2 and len(found["ranks"]["figures"]) == 2
    assert [check["name"] for check in found["checks"][-2:]] == ["agreement", "reach"]
