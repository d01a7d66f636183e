"""The sequence lock driven by the host: between two hosts, and with a kernel at either end, which proves the bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lock_rig import Transfers, make_lock, make_world

from rdmakit.errors import BadArgument, BadState, CompletionError, HangError, SequenceError
from rdmakit.signal import HostReceiver, HostSender
from rdmakit.signal.host_end import HostEnd

WAYS = ["amo", "imm", "write", "cqe"]


def ends(world, connect=True, **options):
    sender, receiver = (kind(world.open(i).alloc_pd(), **options) for i, kind in enumerate((HostSender, HostReceiver)))
    if connect:
        offers = [json.loads(json.dumps(end.offer())) for end in (sender, receiver)]
        sender.connect(offers[1])
        receiver.connect(offers[0])
    return sender, receiver


def payloads(rng, count, most):
    return [rng.integers(0, 256, int(n), np.uint8).tobytes() for n in rng.integers(0, most + 1, count)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize("first", [0, (1 << 16) - 7, (1 << 32) - 7])
def test_windows_wrap_and_every_byte_arrives(way, crc, first, seed, rng):
    world = make_world(seed=seed)
    sender, receiver = ends(world, strategy=way, slots=4, max_payload=600, crc=crc, first_ticket=first)
    for number, payload in enumerate(payloads(rng, 40, 600)):
        assert sender.send(payload) == first + number
        assert receiver.receive() == payload
    receiver.finish()
    sender.finish()
    assert receiver.signed_off == sender.next_ticket == first + 40 and sender.credit == first + 40
    assert receiver.qp.context.counters["rnr_naks"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_without_credit_the_sender_says_so(way, seed):
    sender, receiver = ends(make_world(seed=seed), strategy=way, slots=4, max_payload=64)
    for _ in range(4):
        sender.send(b"a window's worth")
    with pytest.raises(HangError, match="credit has not come"):
        sender.send(b"one too many", timeout=0.1)
    for _ in range(4):
        assert receiver.receive() == b"a window's worth"
    receiver.finish()
    sender.send(b"one too many")
    assert receiver.receive() == b"one too many"


@pytest.mark.parametrize("way", WAYS)
def test_a_failed_queue_pair_is_replaced_from_the_first_ticket_not_signed_off(way, seed, rng):
    """On the other port, by new ends: nothing is lost, nothing comes twice."""
    world = make_world(seed=seed)
    sender, receiver = ends(world, strategy=way, slots=8, max_payload=64)
    sent, got = payloads(rng, 20, 64), []
    for payload in sent[:5]:
        sender.send(payload)
    got += [receiver.receive() for _ in range(3)]
    sender.qp.modify("ERR")
    with pytest.raises((CompletionError, HangError)):
        for payload in sent[5:]:
            sender.send(payload, timeout=0.1)
        sender.finish(timeout=0.1)
    # What had arrived may still be taken; then both go on from what the receiver has signed off.
    options = {"strategy": way, "slots": 8, "max_payload": 64, "first_ticket": receiver.signed_off, "epoch": 2}
    sender, receiver = ends(world, connect=False, **options)
    offers = [end.offer() for end in (sender, receiver)]
    sender.connect(offers[1], port=2)
    receiver.connect(offers[0], port=2)
    for payload in sent[3:]:
        sender.send(payload)
        got.append(receiver.receive())
        receiver.give_back()
    assert got == sent


# ---- a kernel at the other end
class ByHost:
    """An end of a `SequenceLock`, driven by the host."""

    @classmethod
    def sender(cls, lock):
        made = HostSender.__new__(HostSender)
        HostEnd.__init__(made, lock._sender, lock.epoch, lock.crc)
        made.sender, made.max_payload = lock._sender, lock.max_payload
        made._ring, end = lock._receiver.ring.remote(), lock._receiver
        made._signal = end.signal.slice(end.signal_address(lock.epoch) - end.signal.address).remote()
        return made

    @classmethod
    def receiver(cls, lock):
        made = HostReceiver.__new__(HostReceiver)
        HostEnd.__init__(made, lock._receiver, lock.epoch, lock.crc)
        made.receiver, made.max_payload, made.credit_every = lock._receiver, lock.max_payload, lock.credit_every
        made._peer_qpn, made._immediates = lock.sender_qp.qpn, []
        credit, word = lock._sender.credit, lock._sender.credit_word(lock.epoch)
        made._credit = credit.slice(word.ctypes.data - credit.address, 8).remote()
        if lock._receiver.receive_cq is not None:
            lock._receiver.receive_cq._hand_over(None)
            made.qp.dbrec_view()["rcv"] = 0
            for _ in range(lock.slots):
                made.qp.post_recv([])
        return made


@pytest.mark.parametrize("way", ["amo", "amo-crc", "imm", "imm-crc", "write", "write-crc", "cqe"])
def test_a_kernel_takes_what_the_host_sends(way, seed, rng):
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=16, max_payload=500)
    moved = Transfers(world, [lock], rng.integers(0, 501, 16), rng)
    host = ByHost.sender(lock)
    for i in range(16):
        host.send(moved.payload(0, i))
    moved.launch(send=False)
    moved.check()


@pytest.mark.parametrize("way", ["amo", "amo-crc", "imm", "imm-crc", "write", "write-crc", "cqe"])
def test_the_host_takes_what_a_kernel_sends(way, seed, rng):
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=16, max_payload=500)
    moved = Transfers(world, [lock], rng.integers(0, 501, 16), rng)
    host = ByHost.receiver(lock)
    moved.launch(receive=False)
    for i in range(16):
        assert host.receive() == moved.payload(0, i)
    host.finish()
    assert lock.signed_off == 16


# ---- what is refused
def test_a_flag_of_a_later_ticket_is_a_gap(seed):
    sender, receiver = ends(make_world(seed=seed), strategy="write", slots=4, max_payload=64)
    sender.send(b"first")
    sender.finish()
    receiver.receiver.flags[0] = int(receiver.receiver.flags[0]) + 4
    with pytest.raises(SequenceError, match="later ticket") as caught:
        receiver.receive()
    assert (caught.value.reason, caught.value.ticket, receiver.signed_off) == ("GAP", 0, 0)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(0, "GAP"), (12, "WRONG_FINGERPRINT"), (16, "STALE_EPOCH"), (34, "CORRUPT_PAYLOAD")],
)
def test_what_is_not_that_transfer_is_refused(at, reason, seed):
    sender, receiver = ends(make_world(seed=seed), strategy="amo", slots=4, max_payload=64, crc=True)
    sender.send(b"payload")
    sender.finish()
    receiver.receiver.ring.bytes[at] += 2
    with pytest.raises(SequenceError) as caught:
        receiver.receive()
    assert caught.value.reason == reason and receiver.signed_off == 0


def test_ends_of_different_make_do_not_connect(seed):
    world = make_world(seed=seed)
    sender, receiver = HostSender(world.open(0).alloc_pd(), slots=8), HostReceiver(world.open(1).alloc_pd(), slots=16)
    with pytest.raises(BadArgument, match="disagree about slots"):
        sender.connect(receiver.offer())
    with pytest.raises(BadArgument, match="kernels alone"):
        HostSender(world.open(0).alloc_pd(), strategy="eager")
    with pytest.raises(BadArgument, match="power of two"):
        HostSender(world.open(0).alloc_pd(), slots=3)
    with pytest.raises(BadState, match="not connected"):
        sender.send(b"")
    with pytest.raises(BadState, match="not connected"):
        receiver.receive()
