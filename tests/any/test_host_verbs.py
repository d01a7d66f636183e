"""Host-posted verbs against NumPy truth, on every doorbell mode and policy of the emulated device."""

import numpy as np
import pytest
from verbs_rig import WORLDS, Rig

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import BadState, ForeignObject
from rdmakit.layout import Syndrome, WcStatus, encode


@pytest.fixture(params=WORLDS, ids=lambda options: "-".join(map(str, options.values())))
def rig(request, seed):
    return Rig(seed, **request.param)


@pytest.fixture
def plain(seed):
    return Rig(seed)


def test_write(rig):
    expected = rig.there.copy()
    expected[100:164] = rig.here[7:71]
    rig.near.post_write(rig.mine[7:71], rig.theirs[100:], wr_id="w")
    (done,) = rig.done()
    assert (rig.there == expected).all()
    assert (done.opcode, done.status, done.wqe_index, done.wr_id) == ("RDMA_WRITE", WcStatus.SUCCESS, 0, "w")


def test_write_gathers_and_read_scatters(rig):
    there = rig.there.copy()
    rig.near.post_write([rig.mine[0:10], rig.mine[500:1000], rig.mine[20:21]], rig.theirs)
    rig.near.post_read([rig.mine[3000:3005], rig.mine[2000:2900]], rig.theirs[1000:])
    rig.done(2)
    gathered = np.concatenate([rig.here[0:10], rig.here[500:1000], rig.here[20:21]])
    assert (rig.there[:511] == gathered).all() and (rig.there[511:] == there[511:]).all()
    assert (rig.here[3000:3005] == there[1000:1005]).all() and (rig.here[2000:2900] == there[1005:1905]).all()


def test_inline_write(rig):
    rig.near.post_write(b"twenty-eight bytes at most!!", rig.theirs)
    rig.done()
    assert rig.there[:28].tobytes() == b"twenty-eight bytes at most!!"


def test_write_imm(rig):
    rig.far.post_recv([], wr_id=5)
    rig.near.post_write_imm(rig.mine[:256], rig.theirs, 0xCAFEF00D)
    rig.done()
    (got,) = rig.far.recv_cq.wait()
    assert (rig.there[:256] == rig.here[:256]).all()
    assert (got.opcode, got.imm, got.byte_len, got.wr_id) == ("RECV_RDMA_WITH_IMM", 0xCAFEF00D, 256, 5)
    assert got.is_receive and got.qp is rig.far


def test_send(rig):
    rig.far.post_recv([rig.theirs[0:16], rig.theirs[1000:2000]])
    rig.near.post_send(rig.mine[:116])
    rig.done()
    (got,) = rig.far.recv_cq.wait()
    assert (rig.there[0:16] == rig.here[0:16]).all() and (rig.there[1000:1100] == rig.here[16:116]).all()
    assert (got.opcode, got.byte_len, got.imm) == ("RECV", 116, None)


def test_send_imm_and_inline(rig):
    rig.far.post_recv(rig.theirs[:64])
    rig.far.post_recv([])
    rig.near.post_send_imm(b"inline", 7)
    rig.near.post_send_imm([], 0x80000000)
    rig.done(2)
    first, second = rig.far.recv_cq.wait(2)
    assert rig.there[:6].tobytes() == b"inline"
    assert [(c.opcode, c.imm, c.byte_len) for c in (first, second)] == [
        ("RECV_IMM", 7, 6),
        ("RECV_IMM", 0x80000000, 0),
    ]


def test_fetch_add_and_compare_swap(rig):
    words, landing = rig.there.view(np.uint64), rig.here.view(np.uint64)
    old = words[:3].copy()
    rig.near.post_fetch_add(rig.mine[:8], rig.theirs, 2**64 - 5)
    rig.near.post_cmp_swap(rig.mine[8:16], rig.theirs[8:], int(old[1]), 77)
    rig.near.post_cmp_swap(rig.mine[16:24], rig.theirs[16:], int(old[2]) ^ 1, 77)
    done = rig.done(3)
    assert (landing[:3] == old).all()
    assert words[0] == np.uint64((int(old[0]) - 5) % 2**64)
    assert words[1] == 77 and words[2] == old[2]
    assert [c.opcode for c in done] == ["ATOMIC_FA", "ATOMIC_CS", "ATOMIC_CS"]


def test_masked_atomics_of_eight_bytes(rig, rng):
    words, landing = rig.there.view(np.uint64), rig.here.view(np.uint64)
    old = [int(word) for word in words[:2]]
    swap, mask = (int(v) for v in rng.integers(0, 2**64, 2, dtype=np.uint64))
    ones = 2**64 - 1
    first = rig.near.post_masked_fetch_add(rig.mine[:8], rig.theirs, ones, boundary=ones)  # no carries: XOR
    second = rig.near.post_masked_cmp_swap(
        rig.mine[8:16], rig.theirs[8:], old[1] & 0xFF, swap, compare_mask=0xFF, swap_mask=mask
    )
    third = rig.near.post_nop()
    rig.done(3)
    assert (first, second, third) == (0, 1, 3)  # the 8-byte masked compare-and-swap takes two basic blocks
    assert words[0] == old[0] ^ ones and words[1] == old[1] & ~mask & ones | swap & mask
    assert landing[:2].tolist() == old


def test_masked_atomics_of_four_bytes(rig):
    words, landing = rig.there.view(np.uint32), rig.here.view(">u4")  # 4-byte results are big endian
    old = [int(word) for word in words[:2]]
    rig.near.post_masked_fetch_add(rig.mine[:4], rig.theirs, 0x01010101, boundary=0x80808080, width=4)
    rig.near.post_masked_cmp_swap(rig.mine[4:8], rig.theirs[4:], 0, 42, compare_mask=0, width=4)
    rig.done(2)
    lanes = sum(((old[0] >> 8 * i & 0xFF) + 1 & 0xFF) << 8 * i for i in range(4))
    assert words[0] == lanes and words[1] == 42
    assert landing[:2].tolist() == old


def test_nop_dump_and_raw_bytes(rig):
    rig.near.post_nop()
    rig.near.post_dump(rig.mine[:1])
    raw = encode.write(
        index=rig.near.posted,
        qpn=rig.near.qpn,
        raddr=rig.theirs.address,
        rkey=rig.theirs.rkey,
        sges=rig.mine[:5].sge(),
    )
    rig.near.post_wqe(raw[:48])  # the size field counts 16-byte units; the rest of the block is ours
    assert [c.opcode for c in rig.done(3)] == ["NOP", "DUMP", "RDMA_WRITE"]
    assert (rig.there[:5] == rig.here[:5]).all()


def test_a_batch_rings_once(rig):
    with rig.near.batch():
        for i in range(20):
            rig.near.post_write(rig.mine[i : i + 1], rig.theirs[i:], signalled=i == 19)
        assert rig.near.context.counters["doorbells"] == 0
    assert len(rig.done()) == 1
    assert rig.near.context.counters["doorbells"] == 1
    assert (rig.there[:20] == rig.here[:20]).all()


def test_rings_and_indices_wrap(plain):
    for lap in range(700):  # 16-bit indices wrap at 65536 basic blocks
        with plain.near.batch():
            for i in range(48):
                plain.near.post_masked_cmp_swap(plain.mine[:8], plain.theirs, 0, lap, compare_mask=0, signalled=i == 47)
        (done,) = plain.done()
        assert done.wqe_index == plain.near.posted - 2
    assert plain.near.posted == 700 * 96 > 65536
    assert plain.there.view(np.uint64)[0] == 699


def test_collapsed_and_large_completion_queues(seed):
    world = rdmakit.World(hosts=2, seed=seed)
    near, far = world.open(0), world.open(1)
    for options in ({"collapsed": True}, {"cqe_bytes": 128}):
        cq = near.create_cq(16, **options)
        qp = near.alloc_pd().create_qp(cq)
        peer = far.alloc_pd().create_qp(far.create_cq(4))
        qp.connect(peer), peer.connect(qp)
        for turn in range(40):
            qp.post_nop()
            assert cq.wait()[-1].wqe_index == turn
        assert cq.poll() == []


def test_scatter_to_cqe_leaves_memory_alone(seed):
    rig = Rig(seed)
    qp = rig.near.pd.create_qp(rig.near.context.create_cq(8), scatter_to_cqe=True, sq_sig_all=True)
    peer = rig.far.pd.create_qp(rig.far.context.create_cq(8))
    qp.connect(peer), peer.connect(qp)
    before = rig.here.copy()
    qp.post_read(rig.mine[:16], rig.theirs)
    (done,) = qp.send_cq.wait()
    assert done.inline_data == rig.there[:16].tobytes()
    assert (rig.here == before).all()


# ---- ports


def test_source_ports_and_affinity_choose_the_physical_port(seed):
    hashed = Rig(seed, lag="hash")
    used = set()
    for port in range(0xC000, 0xC010):
        hashed.near.udp_sport = port
        assert hashed.near.udp_sport == port
        used.add(hashed.near.physical_port)
    assert used == {1, 2}
    with pytest.raises(Exception, match="UDP source port"):
        hashed.near.udp_sport = 80
    bonded = Rig(seed, lag="affinity")
    for port in (1, 2):
        bonded.near.lag_port = port
        assert bonded.near.lag_port[0] == port == bonded.near.physical_port
        bonded.near.post_write(bonded.mine, bonded.theirs)
        bonded.done()
        assert bonded.near.context.port(port).counters["xmit_payload"] == 4096
    with pytest.raises(rdmakit.RdmakitError):
        Rig(seed).near.lag_port = 2


def test_a_pair_of_devices_that_is_not_bonded(seed):
    """Two NICs of one port beside one GPU: each with a name, keys and counters of its own; one may fail alone."""
    world = rdmakit.World(hosts=2, nics_per_gpu=2, ports=1, seed=seed)
    assert world.ranks[0].nics == (0, 1)
    pairs = [connected_pair(world.open(0, nic), world.open(1, nic)) for nic in (0, 1)]
    source, sinks = np.arange(512, dtype=np.uint8), [np.zeros(512, np.uint8) for _ in pairs]
    mine = [near.pd.register(source) for near, _ in pairs]  # the same memory, once for each device
    theirs = [far.pd.register(sink) for (_, far), sink in zip(pairs, sinks, strict=True)]
    for nic, (near, far) in enumerate(pairs):
        near.post_write(mine[nic][: 256 * (nic + 1)], theirs[nic])
        assert near.send_cq.wait().all_ok
        assert far.context.port(1).counters["rcv_payload"] == 256 * (nic + 1)
    assert [near.context.port(1).counters["xmit_payload"] for near, _ in pairs] == [256, 512]
    assert all((sink[:256] == source[:256]).all() for sink in sinks)
    with pytest.raises(ForeignObject):
        pairs[0][0].post_write(mine[1], theirs[0])
    pairs[0][0].post_write(mine[0], theirs[1])  # an rkey of the peer's other device
    assert pairs[0][0].send_cq.wait(check=False)[0].status.name == "REM_ACCESS_ERR"
    world.set_port_up(0, 0, 1, False)
    pairs[1][0].post_write(mine[1], theirs[1])
    assert pairs[1][0].send_cq.wait().all_ok and (sinks[1] == source).all()


def test_a_cable_is_pulled_and_put_back(seed):
    rig = Rig(seed)
    rig.world.set_port_up(0, 0, 1, False)
    assert not rig.near.context.port(1).up
    assert "port_error" in [event.name for event in rig.near.context.events()]
    rig.near.post_write(rig.mine, rig.theirs)
    assert rig.near.send_cq.wait(check=False)[0].syndrome == Syndrome.TRANSPORT_RETRY_EXC_ERR
    rig.world.set_port_up(0, 0, 1, True)
    rig.near.modify("RESET").connect(rig.far)
    rig.far.modify("RESET").connect(rig.near)
    rig.near.post_write(rig.mine, rig.theirs)
    assert rig.done().all_ok


def test_events_of_an_armed_completion_queue(plain):
    plain.near.send_cq.arm()
    plain.near.post_nop()
    plain.done()
    assert ("completion", plain.near.send_cq.cqn, 0) in plain.near.context.events()
    assert plain.near.context.events() == []


def test_verbs_of_a_device_whose_world_runs_elsewhere_are_refused(plain):
    plain.world._running = True
    with pytest.raises(BadState, match="running in another thread"):
        plain.near.post_nop()
    plain.world._running = False
