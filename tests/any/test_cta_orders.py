"""What the HCA made of warps keeps in order, how far its fences reach, and by which way it serves.

Explored where orders are concerned; what each way leaves in memory is test_cta_hca.py's.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_cta_hca import POLICIES

import rdmakit
from rdmakit.device import RemoteMemory, connected_pair
from rdmakit.explore import Explorer
from rdmakit.explore.scenarios.hca import PLACES, puts
from rdmakit.explore.scenarios.put_signal import MEMORY, exchange


# ---- orders --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("put-signal-cta", {}),
        *(("hca-puts", {"place": place, "doorbell": bell}) for place in PLACES for bell in ("dbrec", "no_dbr")),
        *(("hca-puts", {"place": place, "words": 40}) for place in PLACES),
        *(("hca-peer-fails", {"place": place, "refused": by}) for place in PLACES for by in (0, 1)),
        *(("hca-peer-fails", {"place": place, "waits": 0}) for place in PLACES),
        ("hca-nobody-waits", {}),
        ("hca-receives", {}),
        ("ring", {"engine": "cta"}),
        *(("lock", {"engine": "cta", "strategy": strategy}) for strategy in ("amo", "imm", "write", "cqe")),
    ],
)
def test_explored(name, options):
    """Device code of the HCA under every kind of schedule: what it forgets to order is a race, or an old value."""
    result = Explorer(name, **options).run(1000)
    assert result.ok, result


# ---- scopes --------------------------------------------------------------------------------------------------------
def near_handle(scene, **options):
    """`put-signal`, whose sender takes the HCA for warps of its own GPU."""
    world = scene.world(hosts=2, ports=1, **options)
    exchange(scene, world, same_gpu=True)


def test_gpu_scope_reaches_warps_and_no_nic():
    """The same kernels, the same handle: an HCA of warps sees all, a NIC old WQEs or an old record."""
    assert Explorer(lambda scene: near_handle(scene, engine="cta")).run(2000).ok
    refused = Explorer(near_handle).run(2000)
    assert not refused.ok, "a NIC that is content with fences of gpu scope"


def test_gpu_scope_does_not_reach_another_gpu():
    """Server or reader on another GPU, taken for the same: each alone is noticed."""

    def server_apart(scene):
        ends = build(scene, "apart")
        ends.handles[0].array["same_gpu"] = 1

    def reader_apart(scene):
        ends = build(scene, "two")
        pods = ends.world._cta.devices[0].pods
        scene.serve()
        pods["same_gpu"] = 1

    def build(scene, place):
        scene.options["place"] = place
        return puts(scene)

    assert not Explorer(server_apart).run(2000).ok
    assert not Explorer(reader_apart).run(2000).ok
    assert Explorer(lambda scene: build(scene, "apart")).run(2000).ok


def test_who_is_on_one_gpu():
    """Handles and PODs say it only where every rank of the hosts concerned is the same GPU."""

    def told(hosts, gpus):
        world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, engine="cta")
        near, _ = connected_pair(world.open(0), world.open(hosts - 1))
        near.post_nop()
        world.run()
        return int(near.device_handle()["same_gpu"]), int(world._cta.devices[0].pod(near.qpn)["same_gpu"])

    assert told(1, 1) == (1, 1)
    assert told(2, 1) == (1, 0)
    assert told(1, 2) == (0, 0)
    host = rdmakit.World()
    near, _ = connected_pair(host.open(), host.open())
    assert int(near.device_handle()["same_gpu"]) == 0


# ---- the two ways of serving ---------------------------------------------------------------------------------------
COUNTED = """
#include <rdmakit/hca_engine.cuh>
#include <rdmakit/signal.cuh>
struct Marks {
    unsigned* at;
    RDMAKIT_DEVICE void mark(rdmakit::Stage stage) {
        if (rdmakit::lane_id() == 0) rdmakit::fetch_add(&at[static_cast<unsigned>(stage)], 1u);
    }
};
RDMAKIT_KERNEL serve_and_put(const rdmakit::HcaHandle* hca, const rdmakit::QpHandle* qp, rdmakit::RemoteMemory to,
                             rdmakit::LocalMemory from, rdmakit::RemoteMemory word, unsigned bytes, unsigned* marks) {
    using namespace rdmakit;
    if (block_id() == 0) {
        hca_serve(*hca, static_cast<u32>(warp_id()), static_cast<u32>(warps_in_block()), Marks{marks});
        return;
    }
    if (block_rank() == 0 && check_handle(*qp) && put_signal(*qp, to, from, bytes, word, 1) == Status::ok) quiet(*qp);
    hca_leave(hca->left);
}
"""


def served(policy, lanes, queue_pairs, nbytes, seed):
    """Puts and signals through `queue_pairs` that two warps serve; what they mark, stage by stage."""
    world = rdmakit.World(hosts=2, engine="cta", policy=policy, seed=seed)
    pairs = [connected_pair(world.open(0), world.open(1)) for _ in range(queue_pairs)]
    near, far = pairs[-1]
    source, target = world.array(nbytes), world.array(nbytes, fill=0xDD)
    source[:] = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    word, marks = world.array(1, np.uint64), world.array(6, np.uint32)
    mine, theirs, signal = near.pd.register(source), far.pd.register(target), far.pd.register(word)
    pod = near.device_handle()
    kernel = world.compile(COUNTED, lanes=lanes, name="counted.cu").get_function("serve_and_put")
    for turn in range(3):
        source += 1
        with world.riding(leavers=1) as handles:
            kernel(2, 64, (handles[0], pod.array, theirs.remote(), mine, signal.remote(), nbytes, marks))
            world.run()
        pod.report.raise_for_status()
        assert np.array_equal(source, target) and word[0] == turn + 1
    return list(marks)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [1, 32])
@pytest.mark.parametrize("nbytes", [1, 8, 13, 16, 200])
def test_a_warp_for_each_queue_pair_takes_the_short_way(policy, lanes, nbytes, seed):
    """Every stage of each put is marked there. In Explore lanes may see a doorbell one after the other: then not."""
    heard, fetched, *stages = served(policy, lanes, 2, nbytes, seed)
    assert heard >= fetched >= max(stages)
    if policy == "explore" and lanes == 32:
        assert all(stage <= 3 for stage in stages)
    else:
        assert stages == [3, 3, 3, 3]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [1, 32])
def test_more_queue_pairs_than_warps_take_the_long_way(policy, lanes, seed):
    assert not any(served(policy, lanes, 3, 16, seed))


@pytest.mark.parametrize("policy", ["fast", "timed"])
@pytest.mark.parametrize("queue_pairs", [1, 6])
@pytest.mark.parametrize("refused", [False, True])
def test_a_peer_fails_while_a_server_is_resident(policy, queue_pairs, refused, seed):
    """Both servers know each other's queue pair when one end fails.

    By itself, and the other's next put finds nobody; or by a request that the other refuses, which ends that one, too.
    """
    world = rdmakit.World(hosts=2, engine="cta", policy=policy, seed=seed)
    near, far = [connected_pair(world.open(0), world.open(1)) for _ in range(queue_pairs)][-1]
    source, target = world.array(2, np.uint64, 5), world.array(2, np.uint64, 9)
    mine, theirs = near.pd.register(source), far.pd.register(target)
    told, ended = world.array(1, np.uint32), world.array(1, np.uint32)
    to = RemoteMemory(mine.address + (4096 if refused else 0), mine.rkey, 8)
    source_memory = theirs.slice(0, 8) if refused else np.array([(theirs.address, theirs.lkey ^ 0xFF)], MEMORY)[0]
    pods = [qp.device_handle(timeout_ns=10**9) for qp in (near, far)]
    world.stock_kernel("put_and_tell")(1, 32, (pods[1].array, to, source_memory, 8, 2, told), rank=1)
    world.stock_kernel("put_when_told")(1, 32, (pods[0].array, theirs.remote(), mine, 8, told, ended), rank=0)
    world.run()
    assert told[0] == ended[0] == 3  # 1 + Status::completion_error
    assert [pod.report.syndrome for pod in pods] == ([0x05, 0x13] if refused else [0x15, 0x04])
    assert (target == 9).all() and near.state.name == far.state.name == "ERR"
