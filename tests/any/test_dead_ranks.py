"""A rank dies: who waits for it says so, run() names it, and the survivors go on."""

from __future__ import annotations

import numpy as np
import pytest
from test_faults import low_latency, normal
from test_queue import Pair, memory

import rdmakit
from rdmakit.device.report import REPORT, Report
from rdmakit.emu.faults import Faults
from rdmakit.errors import HangError, LaunchError, RankDied

POLICIES = ["fast", "timed", "explore"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layer", [normal, low_latency])
def test_run_names_the_dead_and_who_waited(layer, policy, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=seed, faults="dead=3@30msg")
    with pytest.raises(RankDied) as caught:
        layer(world, seed)
    error = caught.value
    assert isinstance(error, HangError) and error.ranks == (3,)
    assert "rank 3" in str(error) and "World.revive" in error.remedy
    assert world.fault_counts == {"dead": 1} and list(world.dead_ranks) == [3]
    assert 3 not in {wait.rank for wait in error.report.waits}, "the dead do not wait"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_survivor_reports_and_goes_on(policy, seed):
    """Rank 1 waits for a signal that rank 0 does not live to send; rank 1 can be used afterwards."""
    pair = Pair(64, policy=policy, seed=seed, faults="dead=0@1msg")
    word = pair.world.array((2,), np.uint64, name="the signal")
    word_mr = pair.peer.pd.register(word)
    report = Report(pair.world.array((REPORT.itemsize,), np.uint8))
    watch = pair.handle.array[0]["watch"].copy()
    watch["report"], watch["rank"] = report.address, 1
    to, origin = memory(pair.to_mr, pair.to_mr.rkey), memory(pair.from_mr, pair.from_mr.lkey)
    arguments = (pair.handle.array, to, origin, pair.source.nbytes, memory(word_mr, word_mr.rkey))

    def wait(least):
        pair.kernel("wait_and_sum")((1,), (32,), (word, least, pair.sink, 8, word[1:], watch), rank=1)

    for turn in range(1, 4):  # it dies at the first message; what its NIC was told to do, the NIC does
        wait(turn)
        try:
            pair.kernel("put_and_signal")((1,), (32,), arguments)
            pair.world.run()
        except (RankDied, LaunchError) as error:
            assert "died" in str(error)
            died = error
            break
    else:
        pytest.fail("rank 0 did not die")
    if not report:  # only the launch was refused: rank 1 has all that it waited for, and now waits alone
        with pytest.raises(HangError) as caught:
            wait(100)
            pair.world.run()
        died = caught.value
    assert isinstance(died, RankDied)
    assert report.status.name == "TIMEOUT" and report.rank == 1 and report.what == "the peer's signal"

    # The survivor's world: its own kernels run, the dead rank's are refused until it is revived.
    report.clear()
    word[0] = 100
    wait(100)
    pair.world.run()
    assert not report
    with pytest.raises(LaunchError, match="died"):
        pair.kernel("put_and_signal")((1,), (32,), arguments)


def test_in_virtual_time_it_dies_when_it_is_said_to(seed):
    world = rdmakit.World(hosts=2, policy="timed", seed=seed, faults=Faults(dead="1@30us"))
    with pytest.raises(RankDied, match=r"rank 1 at 3\d(\.\d+)? µs died"):
        normal(world, seed)
    assert 30_000 <= world.dead_ranks[1] < 40_000


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_revived_it_takes_part_in_new_buffers(policy, seed):
    world = rdmakit.World(hosts=2, policy=policy, seed=seed, faults="dead=1@20msg")
    with pytest.raises(RankDied):
        normal(world, seed)
    world.revive(1)
    assert not world.dead_ranks
    normal(world, seed)


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_survivors_make_a_mesh_of_their_own(policy, seed):
    """Two pairs in one world: one loses a rank, the other does not notice."""
    world = rdmakit.World(hosts=4, ports=1, policy=policy, seed=seed, faults="dead=0@5msg")
    pairs = []
    for first in (0, 2):
        ends = []
        for rank in (first, first + 1):
            context = world.open_rank(rank)
            pd = context.alloc_pd()
            array = world.array((400,), np.uint64)
            ends.append((pd.register(array), pd.create_qp(context.create_cq(64), sq_wqebbs=64), array))
        (mr, qp, source), (to, peer, sink) = ends
        qp.connect(peer)
        peer.connect(qp)
        source[:] = np.random.default_rng(seed).integers(0, 2**63, 400, dtype=np.uint64)
        handle = qp.device_handle(rank=first)
        arguments = (handle.array, memory(to, to.rkey), memory(mr, mr.lkey), 400, 4)
        world.stock_kernel("put_words")((1,), (32,), arguments, rank=first)
        pairs.append((source, sink, handle, qp, peer))
    with pytest.raises(RankDied) as caught:
        world.run()
    assert caught.value.ranks == (0,) and not caught.value.report.waits
    assert np.array_equal(pairs[1][0], pairs[1][1]), "the other pair has finished"
    assert not np.array_equal(pairs[0][0], pairs[0][1])
