"""Host-posted verbs against NumPy truth, on every doorbell mode and policy of the emulated device."""

import numpy as np
import pytest

import rdmakit
from rdmakit.device import QPState, RemoteMemory, connected_pair
from rdmakit.errors import BadState, CompletionError, DeviceFault, HangError
from rdmakit.layout import Sge, Syndrome, WcStatus, encode

WORLDS = [
    {"policy": "fast"},
    {"policy": "timed"},
    {"policy": "explore"},
    {"doorbell": "register"},
    {"doorbell": "no_dbr"},
    {"roce": False, "mtu": 1024},
    {"lag": "hash"},
    {"lag": "affinity", "ports": 2},
    {"ports": 1},
]


class Rig:
    """Two hosts, a queue pair on each, and 4 KiB of random bytes on either side."""

    def __init__(self, seed, **options):
        self.world = rdmakit.World(hosts=2, seed=seed, **options)
        self.near, self.far = connected_pair(self.world.open(0), self.world.open(1), rq_wqes=8, max_recv_sge=2)
        rng = np.random.default_rng(seed)
        self.here = rng.integers(0, 256, 4096, dtype=np.uint8)
        self.there = rng.integers(0, 256, 4096, dtype=np.uint8)
        self.mine = self.near.pd.register(self.here, name="mine")
        self.theirs = self.far.pd.register(self.there, name="theirs")

    def done(self, count=1):
        return self.near.send_cq.wait(count)


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
                plain.near.post_masked_cmp_swap(
                    plain.mine[:8], plain.theirs, 0, lap, compare_mask=0, signalled=i == 47
                )
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


# ---- what goes wrong on the wire


def fails(rig, syndrome, count=1):
    found = rig.near.send_cq.wait(count, check=False)
    assert found[0].syndrome == syndrome and not found.all_ok
    assert all(c.syndrome == Syndrome.WR_FLUSH_ERR for c in found[1:])
    assert rig.near.state is QPState.ERR
    with pytest.raises(CompletionError) as caught:
        found.raise_for_status()
    error = caught.value
    assert (error.syndrome, error.qpn, error.wqe_index) == (syndrome, rig.near.qpn, found[0].wqe_index)
    assert error.remedy and Syndrome(syndrome).name in str(error) and hex(rig.near.qpn) in str(error)
    return found


@pytest.mark.parametrize("what", ["unknown rkey", "beyond the end", "no right", "after deregistration"])
def test_remote_access_errors(rig, what):
    before = rig.there.copy()
    target = rig.theirs.remote()
    if what == "unknown rkey":
        target = RemoteMemory(target.address, target.rkey ^ 0xFF00, 64)
    elif what == "beyond the end":
        target = RemoteMemory(target.address + 4096 - 63, target.rkey, 64)
    elif what == "no right":
        target = rig.far.pd.register(rig.there, "remote_read").remote()
        rig.world.keep = target
    else:
        rig.theirs.close()
    rig.near.post_write(rig.mine[:64], target)
    fails(rig, Syndrome.REMOTE_ACCESS_ERR)
    assert (rig.there == before).all()


def test_a_key_is_not_reused_at_once_after_deregistration(plain):
    old = plain.theirs.remote()
    plain.theirs.close()
    again = plain.far.pd.register(plain.there)
    assert again.rkey != old.rkey
    plain.near.post_write(plain.mine[:8], old)
    fails(plain, Syndrome.REMOTE_ACCESS_ERR)


def test_local_protection_errors(rig):
    rig.near.post_write(Sge(rig.mine.address, 64, rig.mine.lkey ^ 0x100), rig.theirs)
    rig.near.post_nop()  # flushed behind it
    fails(rig, Syndrome.LOCAL_PROT_ERR, 2)


def test_reading_into_memory_that_may_not_be_written(plain):
    read_only = plain.near.pd.register(plain.here, "remote_read")
    plain.near.post_read(read_only[:8], plain.theirs)
    assert not plain.near.send_cq.wait(check=False).all_ok


def test_another_protection_domain_of_the_peer_does_not_count(plain):
    foreign = plain.far.context.alloc_pd().register(plain.there)
    plain.near.post_write(plain.mine[:8], foreign)
    fails(plain, Syndrome.REMOTE_ACCESS_ERR)


def test_a_right_that_the_queue_pair_lacks(seed):
    rig = Rig(seed)
    rig.far.modify("RESET").connect(rig.near, access="remote_read")
    rig.near.modify("RESET").connect(rig.far)
    rig.near.post_write(rig.mine[:8], rig.theirs)
    found = rig.near.send_cq.wait(check=False)
    assert found[0].syndrome in (Syndrome.REMOTE_INVAL_REQ_ERR, Syndrome.REMOTE_ACCESS_ERR)


def test_receives_too_small_or_missing(rig):
    rig.far.post_recv(rig.theirs[:8])
    rig.near.post_send(rig.mine[:9])
    fails(rig, Syndrome.REMOTE_INVAL_REQ_ERR)
    (got,) = rig.far.recv_cq.wait(check=False)
    assert got.syndrome == Syndrome.LOCAL_LENGTH_ERR and got.opcode == "RECV"


def test_no_receive_is_retried_and_ends_as_the_queue_pair_says(seed):
    rig = Rig(seed)
    rig.near.modify("RESET").connect(rig.far, rnr_retry=2)
    rig.far.modify("RESET").connect(rig.near)
    rig.near.post_send(rig.mine[:9])
    fails(rig, Syndrome.RNR_RETRY_EXC_ERR)


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_no_receive_for_ever_is_told_and_can_still_be_mended(policy, seed):
    rig = Rig(seed, policy=policy)
    rig.near.post_send(rig.mine[:9])
    with pytest.raises(HangError, match="no receive posted"):
        rig.near.send_cq.wait()
    rig.far.post_recv(rig.theirs)
    assert rig.done().all_ok and (rig.there[:9] == rig.here[:9]).all()


def test_an_unconnected_peer_does_not_answer(seed):
    rig = Rig(seed)
    rig.far.modify("RESET")
    rig.near.post_nop()
    rig.near.post_write(rig.mine[:8], rig.theirs)
    found = rig.near.send_cq.wait(2, check=False)
    assert found[1].syndrome == Syndrome.TRANSPORT_RETRY_EXC_ERR


def test_waiting_for_what_was_never_posted_or_rung(plain):
    with pytest.raises(HangError, match="0 of 1 completions") as caught:
        plain.near.send_cq.wait()
    assert "nothing is posted" in caught.value.rule
    plain.near.post_nop(signalled=False)
    with pytest.raises(HangError, match="basic blocks outstanding"):
        plain.near.send_cq.wait()
    with plain.near.batch():
        plain.near.post_nop()
        with pytest.raises(HangError, match="not all of them rung"):
            plain.near.send_cq.wait()
    assert len(plain.done()) == 1


def test_an_overrun_completion_queue_is_dead(seed):
    rig = Rig(seed)
    qp = rig.near.pd.create_qp(rig.near.context.create_cq(4))
    peer = rig.far.pd.create_qp(rig.far.context.create_cq(4))
    qp.connect(peer), peer.connect(qp)
    for _ in range(5):
        qp.post_nop()
    assert len(qp.send_cq.poll()) == 4
    with pytest.raises(DeviceFault, match="overrun"):
        qp.send_cq.poll()
    assert "cq_error" in [event.name for event in rig.near.context.events()]


@pytest.mark.parametrize("seed_of_bytes", range(20))
def test_random_bytes_as_work_requests_end_in_a_completion_or_an_error(seed_of_bytes):
    rng = np.random.default_rng(seed_of_bytes)
    rig = Rig(seed_of_bytes)
    before = rig.there.copy()
    wqe = bytearray(rng.bytes(64))
    wqe[4:7] = rig.near.qpn.to_bytes(3, "big")
    wqe[1:3] = b"\0\0"
    wqe[7] = wqe[7] & 0x3F or 1
    rig.near.post_wqe(bytes(wqe))
    rig.world.run()
    assert rig.near.state in (QPState.RTS, QPState.ERR)
    assert (rig.there == before).all()


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
