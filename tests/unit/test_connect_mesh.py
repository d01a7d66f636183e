"""Full meshes of queue pairs on emulated devices: who is joined to whom, over which port, and what does not fit."""

import itertools

import numpy as np
import pytest
from connect_rig import every_rank

from rdmakit.connect import FileStore, Route, StoreRendezvous, connect_mesh, open_paths
from rdmakit.connect.paths import register
from rdmakit.emu.world import World
from rdmakit.errors import BadArgument, BadState, PeerMismatch, RankMissing


def meshes(tmp_path, worlds, size, *, devices=None, timeout_s=20.0, **options):
    """Every rank's mesh, or its error. `options` may be functions of the rank."""

    def rank(number):
        world = worlds[number] if isinstance(worlds, list) else worlds
        contexts = [world.open(number, nic) for nic in range(devices or 1)]
        given = {name: value(number) if callable(value) and name != "steer" else value
                 for name, value in options.items()}  # fmt: skip
        meeting = StoreRendezvous(FileStore(tmp_path / "meeting"), number, size, timeout_s=timeout_s)
        return connect_mesh(meeting, open_paths(contexts), **{"qps": 2, **given})

    return every_rank(size, rank)


def made(*arguments, **options):
    found = meshes(*arguments, **options)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


def test_everyone_is_joined_to_everyone_and_bytes_arrive_where_they_were_sent(tmp_path, rng, seed):
    world, size, qps = World(hosts=4, ports=2, seed=seed), 4, 3
    found = made(tmp_path, world, size, qps=qps)
    memory = [np.full(64 * size * qps, 0xA5, np.uint8) for _ in range(size)]
    owned = [register(m.paths, array) for m, array in zip(found, memory, strict=True)]
    for mesh in found:
        assert set(mesh.joined) == {(p, i) for p in range(size) if p != mesh.rank for i in range(qps)}
        assert mesh.qps_per_second > 0 and set(mesh.seconds) == {"meet", "create", "exchange", "connect"}
    want = [array.copy() for array in memory]
    for mesh in found:
        for (peer, index), joined in mesh.joined.items():
            payload = rng.integers(0, 256, 64, np.uint8)
            at = 64 * (mesh.rank * qps + index)
            want[peer][at : at + 64] = payload
            source = joined.qp.pd.register(payload)
            target = owned[peer].mrs[found[peer].joined[mesh.rank, index].path.pd]
            joined.qp.post_write(source, target.slice(at, 64))
            joined.qp.send_cq.wait()
    for array, expected in zip(memory, want, strict=True):
        assert np.array_equal(array, expected)


@pytest.mark.parametrize("lag", ["none", "affinity"])
def test_queue_pairs_of_two_ranks_spread_over_the_ports_alike_at_both_ends(tmp_path, lag, seed):
    world = World(hosts=3, ports=2, lag=lag, seed=seed)
    found = made(tmp_path, world, 3, qps=4)
    for mesh in found:
        assert [len(leaving) for leaving in mesh.by_path()] == [4, 4]
        for (peer, index), joined in mesh.joined.items():
            back = found[peer].joined[mesh.rank, index]
            assert joined.route.port == back.route.port == joined.qp.physical_port
            assert joined.how == {"none": "the device's port", "affinity": "LAG affinity"}[lag]
        assert "8 queue pairs to 2 peers" in mesh.table()


def test_a_device_for_each_port(tmp_path, seed):
    world = World(hosts=2, nics_per_gpu=2, ports=1, seed=seed)
    found = made(tmp_path, world, 2, devices=2, qps=6)
    for mesh in found:
        assert [len(leaving) for leaving in mesh.by_path()] == [3, 3]
        assert {j.how for j in mesh.joined.values()} == {"a device for each port"}
        assert len({path.context.device.name for path in mesh.paths}) == 2


def test_source_ports_of_a_plan_and_a_bond_that_hashes(tmp_path, seed):
    """In hash mode queue affinity is refused; the source port chooses the port, and it is the plan's."""
    world = World(hosts=2, ports=2, lag="hash", seed=seed)
    sport = {0: 0xC101, 1: 0xC202, 2: 0xC000, 3: 0xFFFF}
    found = made(tmp_path, world, 2, qps=4, steer=lambda rank, peer, index: Route(1, sport[index]))
    for mesh in found:
        for (_, index), joined in mesh.joined.items():
            assert joined.qp.udp_sport == sport[index] and joined.how == "the bond's hash and flow label"
    errors = meshes(tmp_path / "again", World(hosts=2, ports=2, lag="hash", seed=seed), 2)
    assert all("cannot be chosen" in str(e) or "cannot connect" in str(e) for e in errors), errors


def test_traffic_is_counted_by_port_and_a_one_sided_plan_is_found_out(tmp_path, rng, seed):
    world = World(hosts=2, ports=2, seed=seed)
    for steer, fair in ((None, True), (lambda *_: Route(1), False)):
        found = made(tmp_path / str(fair), world, 2, qps=4, steer=steer)
        memory = [np.zeros(4096, np.uint8) for _ in range(2)]
        owned = [register(m.paths, array) for m, array in zip(found, memory, strict=True)]
        mesh = found[0]
        mesh.count_from_here()
        for joined in mesh.joined.values():
            source = joined.qp.pd.register(rng.integers(0, 256, 4096, np.uint8))
            joined.qp.post_write(source, owned[1].mrs[found[1].joined[0, joined.index].path.pd].remote())
            joined.qp.send_cq.wait()
        if fair:
            sent = mesh.check_balance(1.05)
            assert min(sent) >= 2 * 4096
        else:
            assert mesh.sent_bytes()[1] == 0
            with pytest.raises(BadState, match="not used alike"):
                mesh.check_balance()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"qps": lambda r: 2 + r}, "queue pairs a peer"),
        ({"mtu": lambda r: (1024, 2048)[r]}, "MTU"),
        ({"peers": lambda r: [1] if r == 0 else []}, "joins"),
        ({"steer": lambda rank, peer, index: Route(3)}, "port that is not there"),
    ],
)
def test_numbers_that_do_not_fit_are_errors_of_all_ranks(tmp_path, options, text, seed):
    errors = meshes(tmp_path, World(hosts=2, ports=2, seed=seed), 2, **options)
    assert all(isinstance(error, PeerMismatch) for error in errors), errors
    assert any(text in str(error) for error in errors) and all(error.remedy for error in errors)


def test_link_layers_mtus_and_port_counts_that_do_not_fit(tmp_path, seed):
    def pair(first, second):
        return [World(hosts=2, seed=seed, **options) for options in (first, second)]

    for number, (first, second, options, text) in enumerate(
        (
            ({"roce": True}, {"roce": False}, {}, "link layer"),
            ({"mtu": 4096}, {"mtu": 1024}, {"mtu": 4096}, "active MTU"),
            ({"ports": 2}, {"ports": 1}, {}, "number of ports"),
        )
    ):
        errors = meshes(tmp_path / str(number), pair(first, second), 2, **options)
        assert all(isinstance(error, PeerMismatch) for error in errors), errors
        assert any(text in str(error) for error in errors), errors
    fine = made(tmp_path / "min", pair({"mtu": 4096}, {"mtu": 1024}), 2)  # the smaller of both, as nobody asked
    assert {j.qp.query()["path_mtu"] for mesh in fine for j in mesh.joined.values()} == {3}  # IBV_MTU_1024


def test_a_port_that_is_down_is_named_by_all(tmp_path, seed):
    world = World(hosts=2, ports=2, seed=seed)
    world.set_port_up(1, 0, 2, False)
    errors = meshes(tmp_path, world, 2)
    assert all(isinstance(error, BadState) and "port 2" in str(error) for error in errors), errors


def test_a_rank_that_does_not_come(tmp_path, seed):
    world = World(hosts=2, seed=seed)
    meeting = StoreRendezvous(FileStore(tmp_path), 0, 2, timeout_s=0.3)
    with pytest.raises(RankMissing, match="rank 0 waited for rank 1"):
        connect_mesh(meeting, open_paths([world.open(0)]), qps=1)


def test_when_one_rank_cannot_make_its_queue_pairs_the_others_are_told(tmp_path, seed):
    errors = meshes(tmp_path, World(hosts=2, seed=seed), 2, options=lambda r: {"max_inline": 1 << 20} if r else {})
    assert isinstance(errors[1], BadArgument), errors
    assert isinstance(errors[0], BadState) and "rank 1 cannot connect" in str(errors[0])


def test_what_ranks_tell_is_known_to_all(tmp_path, seed):
    found = made(tmp_path, World(hosts=3, seed=seed), 3, tell=lambda r: {"heap": 100 + r, "keys": [r]})
    assert all(mesh.told == [{"heap": 100 + r, "keys": [r]} for r in range(3)] for mesh in found)


def test_bad_arguments(tmp_path, seed):
    world = World(hosts=2, seed=seed)
    paths, meeting = open_paths([world.open(0)]), StoreRendezvous(FileStore(tmp_path), 0, 2)
    for options in ({"qps": 0}, {"qps": 1, "peers": [0]}, {"qps": 1, "peers": [2]}):
        with pytest.raises(BadArgument, match="no such queue pairs"):
            connect_mesh(meeting, paths, **options)
    with pytest.raises(BadArgument, match="no way out"):
        connect_mesh(meeting, [], qps=1)
    with pytest.raises(BadArgument, match="no devices"):
        open_paths("mlx5_0")
    mesh = made(tmp_path / "two", world, 2)[0]
    with pytest.raises(BadArgument, match="no such queue pair"):
        mesh[1, 9]
    mesh.close()
    assert len(mesh) == 0
    assert list(itertools.chain(*mesh.by_path())) == []
