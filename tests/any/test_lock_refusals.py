"""What a sequence lock's receiver refuses, by name, and what it waits for instead; what an epoch makes of old slots.

Lies are put into the receiver's memory by hand, as a NIC would write them (`lock_rig.put_by_hand`).
"""

from __future__ import annotations

import numpy as np
import pytest
from lock_rig import WAYS, Transfers, make_lock, make_world, put_by_hand, send_immediate

from rdmakit.errors import BadArgument, CompletionError, HangError, LaunchError, SequenceError
from rdmakit.signal import reference as truth

TAILS, FLAGS, EAGER = ["amo", "amo-crc", "amo-narrow", "split"], ["write", "write-crc", "cqe"], ["eager", "eager-crc"]
IMMEDIATES = ["imm", "imm-crc"]
COUNTED = [*TAILS, *IMMEDIATES]  # a signal that says nothing of the slot, which is judged once it has come
CHECKED = [way for way in WAYS if way.endswith("crc")]


class Forged:
    """A lock whose tickets 0 … `due` − 1 have been delivered, and whose receiver now waits for `due` alone."""

    def __init__(self, way, seed, rng, due=5, policy="fast", lanes=1, **options):
        self.world = make_world(policy, seed)
        self.lock = make_lock(self.world, way, slots=4, max_payload=200, channel=3, **options)
        self.due = due
        self.moved = Transfers(self.world, [self.lock], np.full(due + 1, 24), rng, lanes=lanes)
        self.moved.launch(count=due)
        self.payload = self.moved.payload(0, due)

    def put(self, ticket=None, payload=None, **lies):
        put_by_hand(self.lock, self.due if ticket is None else ticket, payload or self.payload, **lies)

    def receive(self):
        self.moved.launch(send=False)

    def refused(self, reason, **facts):
        """The refusal has a name, the ticket and the source line, and nothing has been signed off or given away."""
        with pytest.raises(SequenceError, match=reason) as caught:
            self.receive()
        error, report = caught.value, self.lock.reports[1]
        assert error.reason == reason == report.status.name
        assert (report.rank, report.qpn, report.channel) == (1, self.lock.receiver_qp.qpn, 3)
        assert "lock_receive.cu:" in str(error) and "reconnect" in str(error)
        for name, value in facts.items():
            assert getattr(report, name) == value, (name, getattr(report, name), value)
        assert self.lock.signed_off == self.due and self.lock._receiver.state["credited"] <= self.due
        assert f"the receiver gave up: {reason}" in str(self.lock.story())
        self.moved.check(self.due)


@pytest.mark.parametrize("way", [*WAYS, "split"])
def test_the_hand_that_lies_can_tell_the_truth(way, seed, rng):
    """What is put by hand without a lie is delivered: refusals below are of the lie."""
    forged = Forged(way, seed, rng)
    forged.put()
    forged.receive()
    forged.moved.check()


@pytest.mark.parametrize("way", TAILS)
def test_gap_in_a_slot(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.put(ticket=9)
    forged.refused("GAP", expected=5, seen=9, index=5)


@pytest.mark.parametrize("way", [*FLAGS, *EAGER])
def test_gap_at_a_flag_or_stamp(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.put(ticket=9)
    forged.refused("GAP", expected=5, seen=9, index=5)


@pytest.mark.parametrize("way", IMMEDIATES)
def test_gap_at_the_completion_queue(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.put(ticket=6)
    forged.refused("GAP", expected=5, seen=6)


@pytest.mark.parametrize("way", IMMEDIATES)
def test_repeat_at_the_completion_queue(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.put(ticket=4)
    forged.refused("REPEATED", expected=5, seen=4)


@pytest.mark.parametrize("way", COUNTED)
def test_repeat_in_a_slot(way, seed, rng):
    """The signal has come, and the slot still holds the lap before."""
    forged = Forged(way, seed, rng)
    forged.put(ticket=1, signal=False)
    if way in TAILS:
        forged.lock.tail[0] += 1
    else:
        send_immediate(forged.lock, truth.immediate(forged.lock.sender_qp.qpn, 1, 5))
    forged.refused("REPEATED", expected=5, seen=1)


@pytest.mark.parametrize("way", FLAGS)
def test_a_flag_whose_data_is_not_there(way, seed, rng):
    forged = Forged(way, seed, rng)
    qpn = forged.lock.sender_qp.qpn
    forged.lock.flags[5 % 4] = truth.stamp(5, truth.signal_fingerprint(qpn, 1, 5))
    forged.refused("REPEATED", expected=5, seen=1)


@pytest.mark.parametrize("way", [*WAYS, "split"])
def test_wrong_fingerprint(way, seed, rng):
    """Right ticket, right epoch, another queue pair's."""
    forged = Forged(way, seed, rng)
    forged.put(qpn=forged.lock.sender_qp.qpn ^ 1)
    forged.refused("WRONG_FINGERPRINT")


@pytest.mark.parametrize("way", [*COUNTED, *FLAGS])
@pytest.mark.parametrize("field", ["length", "crc", "fingerprint"])
def test_a_header_that_was_changed(way, field, seed, rng):
    """The signal is right; what lies in the slot is not what was sent."""
    forged = Forged(way, seed, rng)
    forged.put()
    at = {"length": 8, "fingerprint": 12, "crc": 20}[field]
    forged.lock.ring[5 % 4, at] ^= 1
    forged.refused("WRONG_FINGERPRINT", index=5)


@pytest.mark.parametrize("way", ["amo", "imm", "write"])
def test_a_transfer_longer_than_its_slot(way, seed, rng):
    """Its fingerprint fits; the sender's idea of a slot does not."""
    forged = Forged(way, seed, rng)
    forged.put()
    qpn = forged.lock.sender_qp.qpn
    forged.lock.ring[5 % 4, :32] = np.frombuffer(truth.header(qpn, 1, 5, 100_000), np.uint8)
    with pytest.raises(LaunchError, match="a transfer longer than its slot"):
        forged.receive()
    forged.moved.check(5)


@pytest.mark.parametrize("way", [way for way in CHECKED if not way.startswith("eager")])
def test_payload_that_its_checksum_does_not_fit(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.put(spoil=0x40)
    forged.refused("CORRUPT_PAYLOAD", index=5)


def test_without_a_checksum_nobody_sees_it(seed, rng):
    """The reason that checksums exist: the bytes are wrong and signed off."""
    forged = Forged("amo", seed, rng)
    forged.put(spoil=0x40)
    forged.receive()
    assert forged.lock.signed_off == 6 and forged.moved.out[0, 5, 23] == forged.payload[-1] ^ 0x40


@pytest.mark.parametrize("policy", ["fast", "explore"])
def test_a_torn_line_is_waited_for(policy, seed, rng):
    """eager with checksums: a sector of 32 bytes lands after the stamp, and the line is taken then, not before."""
    forged = Forged("eager-crc", seed, rng, policy=policy)
    for torn in range(4):
        whole = bytearray(truth.slot(forged.lock.strategy, forged.payload, forged.lock.sender_qp.qpn, 1, 5, True))
        late = slice(32 * torn, min(32 * torn + 32, 120))
        kept = whole[late]
        whole[late] = bytes(len(kept))
        if bytes(kept) == bytes(len(kept)):
            continue
        forged.lock.ring[1, : len(whole)] = np.frombuffer(bytes(whole), np.uint8)
        forged.refused("WRONG_FINGERPRINT")
        forged.lock.reports[1].clear()
        forged.moved.check(5)
    forged.lock.ring[1, late] = np.frombuffer(bytes(kept), np.uint8)
    forged.put()
    forged.receive()
    forged.moved.check()


@pytest.mark.parametrize("way", EAGER)
@pytest.mark.parametrize("lanes", [1, 32])
@pytest.mark.parametrize("line", [0, 1])
def test_a_bad_line_stops_every_lane(way, lanes, line, seed, rng):
    """Lanes look at lines of their own; where one fails, none delivers."""
    forged = Forged(way, seed, rng, lanes=lanes)
    forged.put(payload=forged.payload * 8)
    forged.lock.ring[5 % 4, 128 * line + 124] ^= 1
    forged.refused("WRONG_FINGERPRINT")


# ---- epochs
@pytest.mark.parametrize("way", COUNTED)
def test_stale_epoch_behind_a_signal(way, seed, rng):
    """A signal of this epoch, but the slot holds the same ticket of the one before."""
    forged = Forged(way, seed, rng)
    forged.lock.reconnect()
    forged.put(epoch=1, signal=False)
    if way in TAILS:
        forged.lock.tail[0] += 1
    else:
        send_immediate(forged.lock, truth.immediate(forged.lock.sender_qp.qpn, 2, 5))
    forged.refused("STALE_EPOCH", expected=2, seen=1, index=5)


@pytest.mark.parametrize("way", [*FLAGS, *EAGER])
def test_stale_flags_and_stamps_are_no_signals(way, seed, rng):
    """They are waited through; when nothing comes, the time-out says what lay there."""
    forged = Forged(way, seed, rng)
    forged.lock.reconnect()
    forged.put(epoch=1)
    forged.refused("STALE_EPOCH")
    forged.lock.reports[1].clear()
    forged.put(epoch=2)
    forged.receive()
    forged.moved.check()


@pytest.mark.parametrize("way", IMMEDIATES)
def test_an_immediate_of_an_earlier_epoch(way, seed, rng):
    forged = Forged(way, seed, rng)
    forged.lock.reconnect()
    send_immediate(forged.lock, truth.immediate(forged.lock.sender_qp.qpn, 1, 5))
    forged.refused("WRONG_FINGERPRINT")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["fast", "explore"])
def test_reconnect_delivers_the_rest_once_and_in_order(way, policy, seed, rng):
    """The queue pair fails with a window under way; other payload is sent under those tickets in the next epoch."""
    world = make_world(policy, seed)
    lock = make_lock(world, way, slots=8, max_payload=300, first_ticket=3)
    moved = Transfers(world, [lock], rng.integers(1, 301, 40), rng)
    done = 0
    for _ in range(3):
        more = int(rng.integers(0, 9))
        moved.launch(count=done + more)
        done += more
        moved.launch(receive=False, count=done + 8)  # a whole window, which nobody takes
        lock.sender_qp.modify("ERR")
        moved.source[0, done:] = rng.integers(0, 256, moved.source[0, done:].shape, dtype=np.uint8)
        lock.reconnect()
        assert (lock.next_ticket, lock.signed_off, lock.in_flight) == (3 + done, 3 + done, 0)
        with pytest.raises((HangError, SequenceError)):  # what the old epoch left is never delivered
            moved.launch(send=False, count=done + 8)
        moved.check(done)
        lock.reconnect()
    moved.launch()
    moved.check()
    assert lock.epoch == 7


@pytest.mark.parametrize("way", WAYS)
def test_a_queue_pair_in_error_is_reported_and_mended(way, seed, rng):
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=4, max_payload=64)
    moved = Transfers(world, [lock], np.full(12, 64), rng)
    moved.launch(count=5)
    lock.sender_qp.modify("ERR")
    with pytest.raises(CompletionError, match="WR_FLUSH_ERR"):
        moved.launch()
    assert "is in ERR: reconnect" in str(lock.story()) or "gave up: COMPLETION_ERROR" in str(lock.story())
    lock.reconnect()
    moved.launch()
    moved.check()


def test_a_dead_receive_queue_is_reported(seed, rng):
    """imm: flushed receive WQEs complete in error at the CQ that the kernel polls."""
    world = make_world(seed=seed)
    lock = make_lock(world, "imm", slots=4, max_payload=64)
    moved = Transfers(world, [lock], np.full(6, 64), rng)
    moved.launch(count=2)
    lock.receiver_qp.modify("ERR")
    with pytest.raises(CompletionError, match="WR_FLUSH_ERR") as caught:
        moved.launch(send=False)
    assert "the completion of the next ticket" in str(caught.value)
    lock.reconnect()
    moved.launch()
    moved.check()


@pytest.mark.parametrize("way", [*FLAGS, *EAGER])
def test_without_a_new_epoch_old_slots_pass_for_new(way, seed, rng):
    """Wrong on purpose: what nobody took before the failure is delivered, though other bytes are to be sent now."""
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=4, max_payload=64)
    moved = Transfers(world, [lock], np.full(4, 64), rng)
    moved.launch(receive=False)
    old = moved.source.copy()
    moved.source[...] ^= 0xFF
    lock.reconnect(forget_epoch=True)
    moved.launch(send=False)
    assert lock.signed_off == 4 and np.array_equal(moved.out[0, :, :64], old[0, :, :64])


def test_an_epoch_must_be_later():
    lock = make_lock(make_world())
    with pytest.raises(BadArgument, match="not a later epoch"):
        lock.reconnect(1)
    assert lock.reconnect(7).epoch == 7
