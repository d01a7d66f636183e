"""What cells "on real hardware" of the notebooks are made of: pairs, ports by plan, timed transfers, a dispatch.

With bonds: rdmakit connectx --lag affinity -- python -m pytest tests/rdma/test_course_cells.py
"""

import numpy as np
import pytest
from ml_dtypes import bfloat16

from rdmakit import course
from rdmakit.course.nic_ports import lag_of, two_ways
from rdmakit.course.real_pair import active_devices, emulated
from rdmakit.errors import BadArgument, NotAvailable

SIZES = [30_000] * 7 + [31_000]


@pytest.fixture(scope="module")
def ways(devices):
    """How many ways out there are, of 2; and how the device spreads queue pairs over them."""
    contexts = active_devices()
    paths = two_ways(contexts)
    lag = lag_of(paths[0].context)
    found = len(paths), "ports" if lag is None else f"bond, by {lag}"
    for context in contexts:
        with context:
            pass
    return found


@pytest.fixture
def two_ports(ways):
    if ways[0] < 2:
        pytest.skip("one port: rdmakit connectx --nics 2")
    return ways[1]


def test_ports_by_plan_and_without(two_ports, seed):
    planned = course.real_ports(8)
    done = planned.send(SIZES, seed)
    assert done.wrong == 0 and max(done.moved) <= 1.05 * min(done.moved) and planned.complaint() == ""
    assert {qp.state.name for qp in planned.qps} == {"RTS"} and len(planned.qps) == 8
    idle = course.real_ports(8, policy="first-half")
    done = idle.send(SIZES, seed)
    assert done.wrong == 0
    assert done.moved[0] > sum(SIZES) * (done.unit == "B") and done.moved[1] == 0 and idle.complaint() == ""
    assert done.unit == "B" or (two_ports.startswith("bond") and not emulated())


def test_queue_pairs_on_ports_of_the_callers_choice(two_ports, seed):
    real = course.real_ports(8, on=[1, 1, 2, 1, 1, 2, 1, 1])
    assert [len(leaving) for leaving in real.meshes[0].by_path()] == [6, 2]
    done = real.send([0, 0, 40_000, 0, 0, 40_000, 0, 0], seed)
    assert done.wrong == 0 and done.moved[0] == 0 < done.moved[1]
    for bad, sizes in (("sizes", [1] * 7), ("not all 0", [0] * 8), ("sizes", [-1] * 8)):
        with pytest.raises(BadArgument, match=bad):
            real.send(sizes)
    for on in ([1] * 7, [3] * 8):
        with pytest.raises(BadArgument, match="no such ports"):
            course.real_ports(8, on=on)


@pytest.mark.parametrize("strategy", ["cqe", "amo"])
def test_transfers(ways, strategy, seed):
    on = [1, 2, 1] if ways[0] == 2 else [1, 1]
    found = course.real_transfers(strategy, on, transfers=20, nbytes=600, rounds=2, seed=seed)
    assert found.wrong == 0 and found.us > 0 and len(found.names) == ways[0]
    if ways[0] == 2 and (ways[1] == "ports" or emulated()):
        assert found.sent[0] > found.sent[1] > 20 * 2 * 600
    with pytest.raises(BadArgument, match="no such locks"):
        course.real_transfers(strategy, [3])


def test_a_dispatch(two_ports, ways, rng):
    ranks, experts, tokens = 4, 8, 12
    x = [rng.standard_normal((tokens, 256), np.float32).astype(bfloat16) for _ in range(ranks)]
    chosen = [np.argsort(rng.random((tokens, experts)), axis=1)[:, :3].copy() for _ in range(ranks)]
    weights = [rng.random((tokens, 3), np.float32) for _ in range(ranks)]
    found = course.real_dispatch(x, chosen, weights, experts, channels=2)
    assert found.wrong == [] and min(found.dispatched) > 0 and min(found.combined) > 0
    host = np.array([0, 0, 1, 1])
    there = [np.isin(c // 4, [1 - host[r]]).any(axis=1).sum() for r, c in enumerate(chosen)]
    assert found.crossed == sum(there)
    uneven = course.real_dispatch(x, chosen, weights, experts, channels=3)
    assert uneven.wrong == []
    if ways != (2, "bond, by hash"):  # what a hash makes of a plan depends on addresses, too
        assert max(uneven.combined) > 1.4 * min(uneven.combined)
        assert max(found.combined) < 1.4 * min(found.combined)
    with pytest.raises(BadArgument, match="no such hosts"):
        course.real_dispatch(x[:3], chosen[:3], weights[:3], 9, hosts=2)
    with pytest.raises(BadArgument, match="ranks that differ"):
        course.real_dispatch([*x[:3], x[3][:5]], chosen, weights, experts)


def test_pairs(devices, mlx5, seed):
    pair = course.real_pair("rdma", queues="proxied")
    assert pair.near.context.device.where == "proxied queues"
    source, target = pair.near.pd.register(pair.world.array(64, fill=7)), pair.far.pd.register(pair.world.array(64))
    with pytest.raises(NotAvailable, match="no library fills these rings"):
        course.wqe_of_library(pair, source, target)
    with pytest.raises(BadArgument, match="no such kind"):
        course.real_pair("mlx6")
    if not mlx5:
        with pytest.raises(NotAvailable, match="no mlx5 NIC with an active port"):
            course.real_pair()
        return
    pair = course.real_pair()
    source, target = pair.near.pd.register(pair.world.array(64, fill=7)), pair.far.pd.register(pair.world.array(64))
    qpn, wqe = course.wqe_of_library(pair, source, target)
    assert int.from_bytes(wqe[4:7], "big") == qpn and (target.bytes == 7).all()
