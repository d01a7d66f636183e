"""The sequence lock's NumPy truth: known vectors, properties of fingerprints and tickets; the device code agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rdmakit
from rdmakit.signal import Strategy
from rdmakit.signal import reference as truth
from rdmakit.signal.abi import LOCK_HEADER
from rdmakit.signal.strategies import HEADER_BYTES, LINE_BYTES, LINE_DATA_BYTES, slot_message

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
QPN, TICKET = st.integers(0, (1 << 24) - 1), st.integers(0, (1 << 63) - 1)
LENGTH = st.integers(0, 1 << 26)
FIELDS = st.tuples(QPN, U32, TICKET, LENGTH, U32)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_vectors(data, crc):
    assert truth.crc32c(data) == crc


@given(FIELDS, st.integers(0, 4), U64)
def test_a_fingerprint_binds_every_field(fields, which, other):
    """Of two that differ in one field, no two that hypothesis tries have the same fingerprint."""
    limits = (1 << 24, 1 << 32, 1 << 63, 1 << 26, 1 << 32)
    changed = list(fields)
    changed[which] = other % limits[which]
    same = tuple(changed) == fields
    assert (truth.fingerprint(*changed) == truth.fingerprint(*fields)) == same


def test_fingerprints_spread():
    """A hundred thousand neighbours: as many collisions as chance gives, and each bit set half of the time."""
    found = np.array([truth.fingerprint(0x41, 1, t, 64) for t in range(100_000)], np.uint32)
    assert len(found) - len(np.unique(found)) <= 8  # 1.2 are expected
    ones = np.unpackbits(found.view(np.uint8)).reshape(-1, 32).mean(0)
    assert (abs(ones - 0.5) < 0.01).all()


@given(TICKET, st.integers(-(1 << 14), 1 << 14))
def test_tickets_widen_within_a_window(ticket, distance):
    seen = max(0, ticket + distance)
    for bits in (16, 32):
        assert truth.widen(seen & ((1 << bits) - 1), bits, ticket) == seen


@given(st.binary(max_size=700), QPN, U32, TICKET, st.booleans())
@settings(max_examples=60)
def test_slots_tell_what_was_put_in(payload, qpn, epoch, ticket, crc):
    for strategy in (Strategy.AMO, Strategy.EAGER):
        raw = truth.slot(strategy, payload, qpn, epoch, ticket, crc)
        assert len(raw) == slot_message(strategy, len(payload))
        data = raw
        if strategy is Strategy.EAGER:
            lines = [raw[at : at + LINE_BYTES] for at in range(0, len(raw), LINE_BYTES)]
            data = b"".join(line[:LINE_DATA_BYTES] for line in lines)
            for number, line in enumerate(lines):
                mark = truth.crc32c(line[:LINE_DATA_BYTES]) if crc else 0
                want = truth.stamp(ticket, truth.line_fingerprint(qpn, epoch, ticket, len(payload), number, mark))
                assert int.from_bytes(line[LINE_DATA_BYTES:], "little") == want
        head = np.frombuffer(data[:HEADER_BYTES], LOCK_HEADER)[0]
        assert (head["ticket"], head["length"], head["epoch"], head["qpn"]) == (ticket, len(payload), epoch, qpn)
        assert head["fingerprint"] == truth.fingerprint(qpn, epoch, ticket, len(payload), int(head["crc"]))
        assert data[HEADER_BYTES : HEADER_BYTES + len(payload)] == payload


@given(st.binary(min_size=1, max_size=600), st.integers(0, 600 * 8 - 1))
def test_a_checksum_sees_each_flipped_bit(payload, bit):
    bit %= 8 * len(payload)
    other = bytearray(payload)
    other[bit // 8] ^= 1 << bit % 8
    assert truth.payload_crc(bytes(other)) != truth.payload_crc(payload)


def test_a_checksum_sees_blocks_change_places(rng):
    first, second = rng.bytes(128), rng.bytes(128)
    assert truth.payload_crc(first + second) != truth.payload_crc(second + first)


# ---- the device code says the same
SOURCE = """
#include <rdmakit/lock.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL say(const u64* in, const u8* payload, u32 length, u64* out) {
    const u32 qpn = u32(in[0]), epoch = u32(in[1]), size = u32(in[3]), crc = u32(in[4]);
    const u64 ticket = in[2];
    const u32 whole = payload_crc(payload, length);
    if (thread_in_block() != 0) return;
    out[0] = fingerprint(qpn, epoch, ticket, size, crc);
    out[1] = signal_fingerprint(qpn, epoch, ticket);
    out[2] = line_fingerprint(qpn, epoch, ticket, size, 7, crc);
    out[3] = stamp_word(ticket, crc);
    out[4] = immediate_of(ticket, u32(out[1]));
    out[5] = widen_ticket(u16(in[5]), ticket);
    out[6] = widen_ticket(u32(in[5]), ticket);
    out[7] = whole;
    out[8] = comes_after(ticket + in[5], ticket);
}
"""


@pytest.fixture(scope="module", params=[1, 32])
def say(request):
    world = rdmakit.World()
    kernel = world.compile(SOURCE, lanes=request.param).get_function("say")

    def run(numbers, payload):
        out = np.zeros(9, np.uint64)
        data = world.array((max(1, len(payload)),), np.uint8)
        data[: len(payload)] = np.frombuffer(payload, np.uint8)
        kernel((1,), (32,), (np.array(numbers, np.uint64), data, len(payload), out))
        world.run()
        return [int(n) for n in out]

    return run


@given(FIELDS, U32, st.binary(max_size=1200))
@settings(max_examples=80, deadline=None)
def test_device_code_agrees(say, fields, low, payload):
    qpn, epoch, ticket, length, crc = fields
    assert say([*fields, low], payload) == [
        truth.fingerprint(*fields),
        truth.signal_fingerprint(qpn, epoch, ticket),
        truth.line_fingerprint(qpn, epoch, ticket, length, 7, crc),
        truth.stamp(ticket, crc),
        truth.immediate(qpn, epoch, ticket),
        truth.widen(low & 0xFFFF, 16, ticket) % (1 << 64),
        truth.widen(low, 32, ticket) % (1 << 64),
        truth.payload_crc(payload),
        int(0 < low),
    ]
