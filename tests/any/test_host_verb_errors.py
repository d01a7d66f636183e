"""Host-posted verbs that fail: each mistake has its own syndrome, flushes what follows, and hangs nobody."""

import numpy as np
import pytest
from verbs_rig import WORLDS, Rig

from rdmakit.device import QPState, RemoteMemory
from rdmakit.errors import CompletionError, DeviceFault, HangError
from rdmakit.layout import Sge, Syndrome


@pytest.fixture(params=WORLDS, ids=lambda options: "-".join(map(str, options.values())))
def rig(request, seed):
    return Rig(seed, **request.param)


@pytest.fixture
def plain(seed):
    return Rig(seed)


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
