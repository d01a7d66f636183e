"""Plans of rdmakit.model on opened devices: queue pairs leave where it was planned, ports move what was planned."""

import numpy as np
import pytest
from connect_rig import results

from rdmakit.connect import FileStore, Route, StoreRendezvous, connect_mesh, open_paths
from rdmakit.connect.paths import register
from rdmakit.emu.world import World
from rdmakit.errors import BadState
from rdmakit.model.cluster import steer_by
from rdmakit.model.execute import check_executed, executed, plan_for, preset_of

RANKS, CHANNELS, NBYTES = 4, 6, 2048


class Joined:
    """Ranks of `world` joined by a plan, each with memory of its own; `send` moves some bytes by every queue pair."""

    def __init__(self, tmp_path, world, devices=1, steer=None, **options):
        everyone = [[world.open(rank, nic) for nic in range(devices)] for rank in range(RANKS)]
        paths = [open_paths(contexts) for contexts in everyone]
        self.plan = plan_for(paths[0], RANKS, channels=CHANNELS, **options)
        chosen = steer or steer_by(self.plan)

        def join(rank):
            meeting = StoreRendezvous(FileStore(tmp_path / "meeting"), rank, RANKS, timeout_s=30)
            return connect_mesh(meeting, paths[rank], qps=CHANNELS, steer=chosen)

        self.meshes = results(RANKS, join)
        self.memory = [register(mesh.paths, np.zeros(NBYTES, np.uint8)) for mesh in self.meshes]

    def send(self, rng, skip=()):
        for mesh in self.meshes:
            for (peer, index), joined in mesh.joined.items():
                if index in skip:
                    continue
                source = joined.qp.pd.register(rng.integers(0, 256, NBYTES, np.uint8))
                there = self.meshes[peer].joined[mesh.rank, index].path.pd
                joined.qp.post_write(source, self.memory[peer].mrs[there])
                joined.qp.send_cq.wait()


@pytest.mark.parametrize(
    ("lag", "mechanism"), [("none", "port_num"), ("affinity", "lag_port"), ("hash", "udp_source_port")]
)
def test_a_plan_is_executed_by_what_the_device_offers(tmp_path, rng, seed, lag, mechanism):
    found = Joined(tmp_path, World(hosts=RANKS, ports=2, lag=lag, seed=seed))
    assert found.plan.mechanism == mechanism
    found.send(rng)
    for mesh in found.meshes:
        rows = check_executed(found.plan, mesh, most=1.1)
        assert len(rows) == (RANKS - 1) * CHANNELS
        assert all(row["seen_port"] == row["port"] and row["seen_source_port"] == row["source_port"] for row in rows)
        assert {row["port"] for row in rows} == {1, 2}


def test_a_device_for_each_port_takes_the_same_plan(tmp_path, rng, seed):
    found = Joined(tmp_path, World(hosts=RANKS, nics_per_gpu=2, ports=1, seed=seed), devices=2)
    found.send(rng)
    for mesh in found.meshes:
        check_executed(found.plan, mesh, most=1.1)
        assert min(mesh.sent_bytes()) >= NBYTES * (RANKS - 1) * CHANNELS // 2


def test_queue_pairs_that_leave_elsewhere_are_named(tmp_path, rng, seed):
    found = Joined(tmp_path, World(hosts=RANKS, ports=2, seed=seed), steer=lambda *_: Route(1))
    found.send(rng)
    with pytest.raises(BadState, match="another port than planned") as caught:
        check_executed(found.plan, found.meshes[0])
    assert caught.value.facts["channel"] >= 0 and caught.value.remedy


def test_a_trap_that_is_planned_is_executed_and_seen(tmp_path, rng, seed):
    """All on the first half of a pool: what was planned happened, and the ports say that it was a bad plan."""
    found = Joined(tmp_path, World(hosts=RANKS, ports=2, seed=seed), policy="first-half")
    assert found.plan.audit()
    found.send(rng)
    check_executed(found.plan, found.meshes[1])
    with pytest.raises(BadState, match="not used alike"):
        found.meshes[1].check_balance()


def test_traffic_that_was_not_planned_shows_in_the_shares(tmp_path, rng, seed):
    found = Joined(tmp_path, World(hosts=RANKS, ports=2, seed=seed))
    one_port = [f.channel for f in found.plan if (f.rank, f.peer) == (0, 1) and f.port == 1]
    found.send(rng, skip=one_port)
    with pytest.raises(BadState, match="another share than planned"):
        check_executed(found.plan, found.meshes[0])


def test_a_preset_says_what_was_opened(seed):
    world = World(hosts=2, ports=2, lag="affinity", mtu=2048, port_gbps=200, seed=seed)
    preset = preset_of(open_paths([world.open(0)]), 4, 2)
    assert (preset.count("hosts"), preset.count("gpus_per_host"), preset.count("ports")) == (2, 2, 2)
    assert preset.text("link_layer") == "roce" and preset.text("lag") == "affinity" and preset.count("mtu") == 2048
    assert preset["port_rate"] == 25e9
    infiniband = preset_of(open_paths([World(hosts=2, ports=1, roce=False, seed=seed).open(0)]), 2)
    assert infiniband.text("link_layer") == "ib" and infiniband.count("ports") == 1


def test_rows_tell_planned_and_seen(tmp_path, seed):
    found = Joined(tmp_path, World(hosts=RANKS, ports=2, seed=seed))
    row = executed(found.plan, found.meshes[2])[0]
    assert set(row) == {"peer", "channel", "qpn", "port", "source_port", "seen_port", "seen_source_port"}
