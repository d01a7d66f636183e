"""Launching kernels in a world: shapes, arguments, streams, determinism, threads, interruption."""

import signal
import threading
import time

import ml_dtypes
import numpy as np
import pytest

import rdmakit
from rdmakit.errors import BadArgument, BadState, HangError, LaunchError

POLICIES = ["fast", "timed", "explore"]

SOURCE = r"""
#include <rdmakit/report.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL where(int* seen, int n) {
    for (int i = block_id() * block_size() + block_rank(); i < n; i += blocks_in_grid() * block_size()) {
        seen[i] = 1000 * block_id() + warp_id();
    }
}
RDMAKIT_KERNEL draw(unsigned* order, unsigned* next) {
    if (lane_id() != 0) return;
    const unsigned mine = fetch_add(next, 1u);
    order[mine] = static_cast<unsigned>(block_id() * warps_in_block() + warp_id());
}
RDMAKIT_KERNEL follow(unsigned* word, unsigned want) {
    Watch none{};
    unsigned seen = 0;
    if (block_rank() == 0) {
        wait_until(word, [=](unsigned v) { return v == want; }, none, Subject{"its turn", want, 0, 0, 0}, &seen);
        store_release(word, want + 1);
    }
}
RDMAKIT_KERNEL meet(int* half) {
    RDMAKIT_SHARED(int, total);
    if (block_rank() == 0) total = 0;
    block_sync();
    fetch_add<Scope::cta>(&total, 1);
    block_sync();
    if (block_rank() == 0) half[block_id()] = total;
}
struct Mixed { u8 a; u64 b; float c; };
RDMAKIT_KERNEL echo(u8* out, i8 a, u16 b, int c, u64 d, float e, double f, bool g, Mixed m, const void* p) {
    if (block_rank() != 0 || lane_id() != 0) return;
    const u64 words[] = {static_cast<u64>(a), b, static_cast<u64>(c), d, m.a, m.b, reinterpret_cast<u64>(p), g};
    for (int i = 0; i < 8; ++i) reinterpret_cast<u64*>(out)[i] = words[i];
    reinterpret_cast<double*>(out)[8] = e;
    reinterpret_cast<double*>(out)[9] = f;
    reinterpret_cast<double*>(out)[10] = m.c;
}
"""
MIXED = np.dtype({"names": ["a", "b", "c"], "formats": ["u1", "<u8", "<f4"], "offsets": [0, 8, 16], "itemsize": 24})


@pytest.fixture
def world(seed):
    return rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)


def kernel(world, name, lanes=None):
    return world.compile(SOURCE, lanes=lanes, name="launch.cu").get_function(name)


# ---- shapes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [1, 32])
def test_real_shapes_run_on_every_rank(policy, lanes, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=seed)
    where = kernel(world, "where", lanes)
    grid, block = (20, 512) if lanes == 1 else (4, 96)
    seen = [world.array(20000, np.int32, -1) for _ in world.ranks]
    for rank in world.ranks:
        where(grid, block, (seen[rank.index], 20000), rank=rank.index)
    run = world.run()
    assert len(run.launches) == 4 and {launch.rank for launch in run.launches} == {0, 1, 2, 3}
    for words in seen:
        assert {*(words // 1000)} == set(range(grid)) and {*(words % 1000)} == set(range(block // 32))


@pytest.mark.parametrize("lanes", [1, 32])
def test_shared_memory_and_barriers(world, lanes):
    half = world.array(6, np.int32)
    kernel(world, "meet", lanes)(6, 256, (half,))
    world.run()
    assert (half == (8 if lanes == 1 else 256)).all()


def test_launches_of_a_stream_run_in_order_and_streams_side_by_side(world):
    word = world.array(1, np.uint32)
    follow = kernel(world, "follow")
    for turn in (1, 3):
        follow(1, 32, (word, turn), stream=0)
    for turn in (0, 2):
        follow(1, 32, (word, turn), stream=1)
    world.run()
    assert word[0] == 4
    follow(1, 32, (word, 5), stream=0)  # waits for what comes after it in its own stream
    follow(1, 32, (word, 4), stream=0)
    with pytest.raises(HangError, match="its turn"):
        world.run()


@pytest.mark.parametrize(
    ("grid", "block", "more", "what"),
    [
        (0, 32, {}, "bad grid"),
        ((1, 1, 1, 1), 32, {}, "bad grid"),
        (1, "32", {}, "bad block"),
        (1, 2048, {}, "1024 threads"),
        (1, 33, {}, "whole warps"),
        (1, 32, {"shared_mem": 1 << 20}, "227 KiB"),
    ],
)
def test_impossible_shapes_are_refused(world, grid, block, more, what):
    with pytest.raises(LaunchError, match=what):
        kernel(world, "where")(grid, block, (np.zeros(1, np.int32), 1), **more)
    assert not world.run().launches


def test_a_rank_or_policy_that_is_not_there(world):
    where = kernel(world, "where")
    with pytest.raises(BadArgument, match="no such rank"):
        where(1, 32, (np.zeros(1, np.int32), 1), rank=4)
    with pytest.raises(BadState, match="another policy"):
        where.bind(rdmakit.World(policy="timed"))
    from rdmakit.emu import compile_source

    unbound = compile_source(SOURCE, name="launch.cu").get_function("where")
    with pytest.raises(BadState, match="bound to no world"):
        unbound(1, 32, (np.zeros(1, np.int32), 1))


# ---- arguments


def test_every_kind_of_argument_arrives(world):
    out, there = world.array(88, np.uint8), np.zeros(3)
    mixed = np.zeros((), MIXED)
    mixed["a"], mixed["b"], mixed["c"] = 200, 2**63, 0.25
    echo = kernel(world, "echo")
    echo(1, 32, (out, -1, np.uint16(65535), np.int64(-7), 2**64 - 1, 0.5, np.float32(1.5), True, mixed, there))
    world.run()
    words, floats = out[:64].view(np.uint64), out[64:].view(np.float64)
    assert words.tolist() == [2**64 - 1, 65535, 2**64 - 7, 2**64 - 1, 200, 2**63, there.ctypes.data, 1]
    assert floats.tolist() == [0.5, 1.5, 0.25]


def test_pointers_may_be_arrays_regions_addresses_or_null(world):
    mr = world.open().alloc_pd().register(np.zeros(64, np.uint8))
    echo, out = kernel(world, "echo"), world.array(88, np.uint8)
    for given, address in (
        (mr, mr.address),
        (mr[8:], mr.address + 8),
        (mr.address + 3, mr.address + 3),
        (None, 0),
        (np.zeros(4, ml_dtypes.bfloat16), None),
    ):
        echo(1, 32, (out, 0, 0, 0, 0, 0, 0, 0, bytes(24), given))
        world.run()
        assert address is None or out[:64].view(np.uint64)[6] == address
    mr.close()
    with pytest.raises(BadState, match="is closed"):
        echo(1, 32, (out, 0, 0, 0, 0, 0, 0, 0, bytes(24), mr))


GOOD = (np.zeros(88, np.uint8), 0, 0, 0, 0, 0.0, 0.0, True, bytes(24), None)


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (0, np.zeros((4, 4))[:, 0], "array with gaps"),
        (0, [1, 2], "must be a pointer"),
        (0, -1, "no address"),
        (0, 1.5, "must be a pointer"),
        (1, 256, "does not fit"),
        (1, -129, "does not fit"),
        (3, 2**32, "does not fit"),
        (3, 1.0, "must be an integer"),
        (3, np.zeros(3, np.int32), "must be an integer"),
        (4, "7", "must be an integer"),
        (5, "0.5", "must be a float"),
        (5, 1e300, "does not fit"),
        (6, None, "must be a float"),
        (8, np.zeros((), [("a", "u1")]), "another size"),
        (8, bytes(23), "another size"),
        (8, 5, "must be a struct"),
        (9, "there", "must be a pointer"),
    ],
)
def test_wrong_arguments_are_named(world, place, value, what):
    arguments = list(GOOD)
    arguments[place] = value
    with pytest.raises(BadArgument, match=what) as caught:
        kernel(world, "echo")(1, 32, arguments)
    assert f"argument {place} of echo" in str(caught.value) and caught.value.rule


def test_a_wrong_number_of_arguments_lists_what_is_asked(world):
    with pytest.raises(BadArgument, match="echo takes 10 arguments") as caught:
        kernel(world, "echo")(1, 32, GOOD[:-1])
    assert "a struct of 24 B" in caught.value.rule
    with pytest.raises(BadArgument, match="arguments of echo"):
        kernel(world, "echo")(1, 32, np.zeros(10))


def test_arguments_live_until_the_launch_has_run(world):
    where = kernel(world, "where")
    import gc
    import weakref

    words = np.zeros(1 << 20, np.int32)
    alive = weakref.ref(words)
    where(1, 32, (words, 1 << 20))
    del words
    gc.collect()
    assert alive() is not None
    world.run()
    gc.collect()
    assert alive() is None


# ---- determinism


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [1, 32])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(policy, lanes):
    def order(seed):
        world = rdmakit.World(seed=seed, policy=policy)
        words, next_word = world.array(256, np.uint32), world.array(1, np.uint32)
        kernel(world, "draw", lanes)(16, 512 if lanes == 1 else 32, (words, next_word))
        world.run()
        return words.tolist(), world.counters, world.now_ns

    first = order(1)
    assert order(1) == first
    assert order(2)[0] != first[0] or policy == "timed"
    assert sorted(first[0])[-16:] == list(range(240, 256)) if lanes == 1 else True


# ---- the rest of the world


def test_a_signal_ends_a_run_and_the_world_goes_on(world):
    module = world.compile("__global__ void busy(int* p) { for (long i = 0; i < 1000000000000; ++i) p[0] += i * i; }")
    word = world.array(2, np.int32)
    module.get_function("busy")(1, 1, (word,))

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            world.run()
        assert time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not world.run().launches


def test_two_threads_in_one_world_are_refused(world):
    busy = world.compile("__global__ void busy(int* p) { for (long i = 0; i < 30000000; ++i) p[0] += i * i; }")
    busy.get_function("busy")(1, 1, (world.array(2, np.int32),))
    refused = []

    def intrude():
        deadline = time.monotonic() + 5
        while not world._running and time.monotonic() < deadline:
            time.sleep(0.001)
        for use in (world.run, world.open().alloc_pd):
            try:
                use()
            except BadState as error:
                refused.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    world.run()
    thread.join()
    assert len(refused) == 2 and "one thread at a time" in refused[0].rule


def test_two_threads_with_a_world_each(seed):
    results = {}

    def work(number):
        world = rdmakit.World(seed=seed)
        words, next_word = world.array(256, np.uint32), world.array(1, np.uint32)
        for _ in range(5):
            next_word[0] = 0
            kernel(world, "draw")(16, 512, (words, next_word))
            world.run()
        results[number] = words.tolist()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]


def test_kernels_print(world, capfd):
    world.compile('__global__ void hello(int n) { printf("hello %d from %d\\n", n, threadIdx.x); }').get_function(
        "hello"
    )(1, 2, (7,))
    world.run()
    assert sorted(capfd.readouterr().out.split("\n"))[1:] == ["hello 7 from 0", "hello 7 from 1"]


def test_timed_launches_have_a_duration(seed):
    world = rdmakit.World(policy="timed", seed=seed)
    kernel(world, "where")(4, 128, (world.array(100, np.int32), 100))
    kernel(world, "meet")(4, 128, (world.array(4, np.int32),))
    run = world.run()
    assert run.elapsed_ns == world.now_ns > 0
    assert run.launches[1].begin_ns >= run.launches[0].end_ns  # one stream
    assert "<table" in run._repr_html_() and "2 launches" in repr(run)


def test_payload_copying_can_be_switched_off(world):
    near, far = rdmakit.device.connected_pair(world.open(0), world.open(1))
    source, target = np.ones(100000, np.uint8), np.zeros(100000, np.uint8)
    mine, theirs = near.pd.register(source), far.pd.register(target)
    world.copy_payload = False
    near.post_write(mine, theirs)
    near.post_write(mine[:8], theirs)
    near.send_cq.wait(2)
    assert target[:8].all() and not target[50000:].any()
    assert near.context.port(1).counters["xmit_payload"] == 100008
    world.copy_payload = True
    near.post_write(mine, theirs)
    near.send_cq.wait()
    assert target.all()


def test_worlds_of_nonsense_are_refused():
    for options in (
        {"hosts": 0},
        {"hosts": 251},
        {"gpus_per_host": 0},
        {"ports": 0},
        {"ports": 5},
        {"lag": "hash", "ports": 1},
        {"lag": "bond"},
        {"policy": "slow"},
        {"doorbell": "loud"},
        {"mtu": 9000},
        {"nics_per_gpu": 0},
        {"port_gbps": -1},
        {"seed": -1},
    ):
        with pytest.raises(BadArgument) as caught:
            rdmakit.World(**options)
        assert caught.value.rule
    with pytest.raises(BadArgument, match="no such host"):
        rdmakit.World().open(1)
    with pytest.raises(BadArgument, match="no such NIC"):
        rdmakit.World().open(0, 1)


def test_ranks_know_their_nics():
    assert [rank.nics for rank in rdmakit.World(gpus_per_host=4, nics_per_gpu=0.5).ranks] == [(0,), (0,), (1,), (1,)]
    assert [rank.nics for rank in rdmakit.World(gpus_per_host=2, nics_per_gpu=2).ranks] == [(0, 1), (2, 3)]
    world = rdmakit.World(hosts=4, gpus_per_host=2)
    assert len(world.ranks) == 8 and world.open_rank(7).device.where == "host 3"
    assert "4 hosts" in repr(world) and "host 3" in world._repr_html_()
