"""The sequence lock delivers: every strategy, every length, windows and tickets that wrap, thousands under way.

The device code is cuda/kernels/lock_send.cu and lock_receive.cu.
"""

from __future__ import annotations

import numpy as np
import pytest
from lock_rig import WAYS, Transfers, make_lock, make_world, thousands_under_way

from rdmakit.errors import BadArgument, LaunchError
from rdmakit.signal import SequenceLock, Strategy, cost

RUNNERS = [("fast", 1), ("timed", 1), ("explore", 1), ("fast", 32), ("explore", 32)]
# Nothing, a byte, the ends of words, blocks and lines, a whole slot, more than one MTU.
LENGTHS = [0, 1, 7, 8, 9, 87, 88, 89, 120, 127, 128, 129, 208, 1000, 4064, 4096, 4097, 9000]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("policy", "lanes"), RUNNERS)
def test_every_length_arrives_whole_and_in_order(way, policy, lanes, seed, rng):
    """Windows of 4 slots wrap eight times; the payload is fresh each time."""
    world = make_world(policy, seed)
    lengths = np.concatenate([rng.permutation(LENGTHS), rng.integers(0, 9001, 14)])
    moved = Transfers(world, [make_lock(world, way, slots=4, max_payload=9000)], lengths, rng, lanes=lanes)
    moved.launch()
    moved.check()
    (lock,) = moved.locks
    assert lock.in_flight == 0 and lock.next_ticket == len(lengths)
    assert lock.receiver_qp.context.counters["rnr_naks"] == 0, "receives are posted before credit is given"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [16, 32, 48])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_tickets_wrap(way, bits, before, seed, rng):
    """The wire carries 16 or 32 bits of a ticket; transfers cross where those start again."""
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=8, max_payload=300, first_ticket=(1 << bits) - before)
    moved = Transfers(world, [lock], rng.integers(0, 301, 24), rng)
    moved.launch()
    moved.check()
    assert lock.signed_off == (1 << bits) - before + 24


@pytest.mark.parametrize("way", ["imm", "amo-narrow"])
def test_a_whole_lap_of_sixteen_bits(way, seed, rng):
    """65,536 tickets and more, with windows and receive queue indices that wrap on the way."""
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, way, slots=64, max_payload=8)], np.full(66_000, 8), rng)
    moved.launch()
    assert np.array_equal(moved.out[0, :, :8], moved.source[0, :, :8]) and moved.locks[0].signed_off == 66_000


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", [1, 2, 16])
@pytest.mark.parametrize("every", [1, None])
def test_windows_of_any_size(way, slots, every, seed, rng):
    world = make_world("explore", seed)
    moved = Transfers(
        world, [make_lock(world, way, slots=slots, max_payload=64, credit_every=every)], rng.integers(0, 65, 40), rng
    )
    moved.launch()
    moved.check()


@pytest.mark.parametrize("way", WAYS)
def test_a_sender_without_credit_waits(way, seed, rng):
    """Nobody receives: a window's worth is sent, and not one more; then the receiver comes, and all goes on."""
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=8, max_payload=64)
    moved = Transfers(world, [lock], np.full(20, 64), rng)
    moved.launch(receive=False, count=8)
    assert (lock.next_ticket, lock.signed_off, lock.in_flight) == (8, 0, 8)
    with pytest.raises(Exception, match="credit for the slot of the next ticket") as caught:
        moved.launch(receive=False)
    assert lock.next_ticket == 8 and f"{lock.sender_qp.qpn:#x}" in str(caught.value)
    assert "the window is full: the receiver is late" in str(lock.story())
    lock.reports[0].clear()
    moved.launch()
    moved.check()


def test_launches_go_on_where_the_last_one_ended(seed, rng):
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, "imm", slots=4, max_payload=64)], rng.integers(0, 65, 30), rng)
    for upto in (3, 4, 17, 30):
        moved.launch(count=upto)
        moved.check(upto)


@pytest.mark.parametrize("way", WAYS)
def test_sums_instead_of_copies(way, seed, rng):
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, way, max_payload=999)], rng.integers(0, 1000, 50), rng, sums=True)
    moved.launch()
    for i in range(50):
        payload = moved.payload(0, i)
        words = np.frombuffer(payload + bytes(-len(payload) % 8), np.uint64)
        assert moved.sums[0, i] == words.sum(dtype=np.uint64)


# ---- many
@pytest.mark.parametrize("way", ["amo", "imm", "eager-crc", "write"])
def test_thousands_under_way_over_64_queue_pairs_and_two_ports(way, seed, rng):
    """4096 transfers sent and not signed off; then 8192 more, any order across queue pairs, strict order inside."""
    world = make_world("timed" if way == "amo" else "explore", seed)
    pds = thousands_under_way(world, way, rng)
    ports = [port.counters["xmit_payload"] for port in pds[0].context.ports]
    assert min(ports) > 0.4 * sum(ports), f"both ports carry their half: {ports}"


def test_all_strategies_in_one_launch(seed, rng):
    """A runtime entry dispatches on each handle's own strategy."""
    world = make_world("explore", seed)
    locks = [make_lock(world, way, channel=k, slots=4, max_payload=200) for k, way in enumerate(WAYS)]
    moved = Transfers(world, locks, rng.integers(0, 201, (len(locks), 12)), rng)
    moved.launch()
    moved.check()


def test_split_arrives_where_nothing_is_reordered(seed, rng):
    """Wrong on purpose, and right by luck: one idle path, no faults."""
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, "split", slots=4, max_payload=64)], np.full(1, 64), rng)
    moved.launch()
    moved.check()


# ---- what it costs
@pytest.mark.parametrize("way", [*WAYS, "split"])
@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_transfer_costs_what_the_table_says(way, length, seed, rng):
    world = make_world(seed=seed)
    lock = make_lock(world, way, slots=2, max_payload=5000)
    moved = Transfers(world, [lock], [length], rng)
    port, context = lock.sender_qp.context.port(1), lock.sender_qp.context
    before, rung = port.counters["xmit_bytes"], context.counters["doorbells"]
    moved.launch(receive=False)
    want = cost(Strategy.of(way.split("-")[0]), length, mtu=4096)
    posted = sum(qp.posted for qp in {lock.sender_qp, lock.signal_qp})
    assert (posted, context.counters["doorbells"] - rung) == (want.wqes, want.doorbells)
    assert port.counters["xmit_bytes"] - before == want.wire_bytes


def test_a_sender_that_waits_for_completions_pays_round_trips(seed, rng):
    """In virtual time: a window by `cqe` takes a round trip a transfer more than `split`, of as many doorbells."""
    took = {}
    for way in ("split", "cqe"):
        world = make_world("timed", seed)
        moved = Transfers(world, [make_lock(world, way, slots=16, max_payload=64)], np.full(16, 64), rng)
        before = world.now_ns
        moved.launch(receive=False)
        took[way] = world.now_ns - before
    extra = (took["cqe"] - took["split"]) / 16
    assert extra > 1000, f"a round trip is more than a microsecond: {took}"


# ---- arguments
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"slots": 3}, "power of two"),
        ({"slots": 1 << 15}, "power of two"),
        ({"strategy": "post"}, "no such strategy"),
        ({"strategy": "imm", "narrow_tail": True}, "narrow"),
        ({"credit_every": 33}, "slots / 2"),
        ({"max_payload": -1}, "payload"),
        ({"first_ticket": 1 << 63}, "ticket"),
    ],
)
def test_what_makes_no_lock_is_refused(options, match):
    world = make_world()
    with pytest.raises(BadArgument, match=match):
        SequenceLock(world.open(0).alloc_pd(), world.open(1).alloc_pd(), **options)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_another_layout_version_is_refused(end, seed, rng, monkeypatch):
    monkeypatch.setattr("rdmakit.signal.lock.LAYOUT_VERSION", 77)
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world)], [8], rng)
    with pytest.raises(LaunchError, match="layout version"):
        moved.launch(send=end == "send", receive=end == "receive")


def test_a_payload_longer_than_a_slot_is_refused(seed, rng):
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, max_payload=64)], [65], rng)
    with pytest.raises(LaunchError, match="a payload longer than a slot") as caught:
        moved.launch(receive=False)
    assert (caught.value.facts["expected"], caught.value.facts["seen"]) == (64, 65)


def test_rows_shorter_than_a_payload_are_refused(seed, rng):
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, max_payload=64)], [8], rng)
    moved.stride = 56
    with pytest.raises(LaunchError, match="rows shorter than a payload"):
        moved.launch()
    assert (moved.out == 0xA5).all()


@pytest.mark.parametrize("end", ["send", "receive"])
def test_a_launch_that_leaves_tickets_out_is_refused(end, seed, rng):
    world = make_world(seed=seed)
    moved = Transfers(world, [make_lock(world, max_payload=64, first_ticket=9)], [8, 8], rng)
    moved.first[:] = 10
    with pytest.raises(LaunchError, match="begin after the next ticket") as caught:
        moved.launch(send=end == "send", receive=end == "receive")
    assert (caught.value.facts["expected"], caught.value.facts["seen"]) == (9, 10)
    assert (moved.out == 0xA5).all() and moved.locks[0].in_flight == 0


def test_it_shows_itself():
    lock = make_lock(make_world(), "eager-crc", slots=4, channel=7)
    assert "eager, crc" in repr(lock) and "channel 7" in repr(lock)
    assert "<table" in lock._repr_html_() and "ticket 0 is next" in str(lock.story())
