"""What the tests of the sequence lock share: locks between two hosts, transfers of fresh payload, poisoned outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import rdmakit
from rdmakit.errors import HangError
from rdmakit.signal import SequenceLock, Strategy, handles
from rdmakit.signal import reference as truth
from rdmakit.signal.abi import LOCK_TRANSFER

POISON = 0xA5
# Every way to run a strategy: its name and its options.
WAYS = {
    "amo": {},
    "amo-crc": {"crc": True},
    "amo-narrow": {"narrow_tail": True},
    "imm": {},
    "imm-crc": {"crc": True},
    "eager": {},
    "eager-crc": {"crc": True},
    "write": {},
    "write-crc": {"crc": True},
    "cqe": {},
}


def make_lock(world, way="amo", channel=0, **options):
    options = {**WAYS.get(way, {}), "strategy": way.split("-")[0], "channel": channel, **options}
    return SequenceLock(world.open(0).alloc_pd(), world.open(1).alloc_pd(), **options)


def make_world(policy="fast", seed=0, **options):
    # `eager` without checksums asks for it (ibv_query_qp_data_in_order); only Explore shows what happens without.
    options.setdefault("data_in_order", True)
    return rdmakit.World(hosts=2, policy=policy, seed=seed, **options)


class Transfers:
    """`count` transfers on each of `locks`, from their first ticket on, and where they arrive."""

    def __init__(self, world, locks, lengths, rng, *, lanes=1, sums=False):
        self.world, self.locks, self.lanes = world, locks, lanes
        self.lengths = np.broadcast_to(np.asarray(lengths, np.uint32), (len(locks), np.shape(lengths)[-1])).copy()
        self.count = self.lengths.shape[1]
        longest = max(int(self.lengths.max(initial=0)), *(lock.max_payload for lock in locks))
        self.stride = -(-longest // 8) * 8 + 8
        shape = (len(locks), self.count, self.stride)
        self.source = world.array(shape, name="source")
        self.source[...] = rng.integers(0, 256, shape, dtype=np.uint8)
        self.out = world.array(shape, fill=POISON, name="out")
        self.got = world.array(self.lengths.shape, np.uint32, 0xDEAD)
        self.sums = world.array(self.lengths.shape, np.uint64, 0xDEAD) if sums else None
        self.transfers = world.array(self.lengths.shape, LOCK_TRANSFER)
        self.transfers["offset"] = np.arange(self.lengths.size).reshape(self.lengths.shape) * self.stride
        self.transfers["length"] = self.lengths
        self.first = world.array((len(locks),), np.uint64)
        self.first[:] = [lock.signed_off for lock in locks]

    def kernel(self, name):
        if self.lanes == 1:
            return self.world.stock_kernel(name)
        path = Path(rdmakit.get_include()) / "kernels" / f"{name}.cu"
        return self.world.compile(path.read_text(), lanes=self.lanes, name=path.name).get_function(name)

    def launch(self, *, send=True, receive=True, count=None, warps=4):
        count = self.count if count is None else count
        senders, receivers = handles(self.locks, self.world.array)
        blocks = -(-len(self.locks) // warps)
        shape = ((blocks,), (32 * warps,))
        assert count == self.count or len(self.locks) == 1, "rows are count apart"
        if receive:
            out = None if self.sums is not None else self.out
            into = (out, self.stride, self.got, self.sums)
            self.kernel("lock_receive")(*shape, (receivers, len(self.locks), self.first, count, *into), rank=1)
        if send:
            of = (self.transfers, self.source)
            self.kernel("lock_send")(*shape, (senders, len(self.locks), self.first, count, *of), rank=0)
        self.run()

    def run(self):
        """A refusal is raised rather than the hang of those who wait for it."""
        hang = None
        try:
            self.world.run()
        except HangError as error:
            hang = error
        for lock in self.locks:
            lock.raise_for_status()
        if hang is not None:
            raise hang

    def check(self, upto=None):
        """Everything below row `upto` came once, whole, in order; behind each payload and below it, poison."""
        upto = self.count if upto is None else upto
        for k in range(len(self.locks)):
            for i in range(self.count):
                n = int(self.lengths[k, i]) if i < upto else 0
                assert np.array_equal(self.out[k, i, :n], self.source[k, i, :n]), (k, i, n)
                assert (self.out[k, i, n:] == POISON).all(), f"lock {k}, row {i} was written behind its end"
        assert np.array_equal(self.got[:, :upto], self.lengths[:, :upto]) and (self.got[:, upto:] == 0xDEAD).all()
        for lock, first in zip(self.locks, self.first, strict=True):
            assert lock.signed_off == int(first) + upto

    def payload(self, k, i):
        return self.source[k, i, : self.lengths[k, i]].tobytes()


def thousands_under_way(world, way, rng):
    """64 queue pairs on two ports: 4096 transfers sent and not signed off, then those signed off, then 8192 more."""
    pds = world.open(0).alloc_pd(), world.open(1).alloc_pd()
    options = {**WAYS[way], "strategy": way.split("-")[0], "slots": 64, "max_payload": 256}
    locks = [SequenceLock(*pds, port=1 + k % 2, channel=k, **options) for k in range(64)]
    first = Transfers(world, locks, rng.integers(0, 257, (64, 64)), rng)
    first.launch(receive=False)
    assert sum(lock.in_flight for lock in locks) == 4096
    first.launch(send=False)
    first.check()
    then = Transfers(world, locks, rng.integers(0, 257, (64, 128)), rng)
    then.launch()
    then.check()
    return pds


def put_by_hand(lock, ticket, payload, *, slot=None, epoch=None, qpn=None, signal=True, spoil=0):
    """What a sender's NIC would do to the receiver's memory, byte by byte; each argument is a way to lie.

    `spoil` is XORed into the last payload byte, after checksums were made.
    """
    epoch = lock.epoch if epoch is None else epoch
    qpn = lock.sender_qp.qpn if qpn is None else qpn
    raw = bytearray(truth.slot(lock.strategy, payload, qpn, epoch, ticket, lock.crc))
    if spoil:
        raw[truth.HEADER_BYTES + len(payload) - 1] ^= spoil
    at = (ticket if slot is None else slot) % lock.slots
    lock.ring[at, : len(raw)] = np.frombuffer(raw, np.uint8)
    if not signal:
        return
    if lock.strategy in (Strategy.AMO, Strategy.SPLIT):
        lock.tail[0] += 1
    elif lock.strategy in (Strategy.WRITE, Strategy.CQE):
        lock.flags[at] = truth.stamp(ticket, truth.signal_fingerprint(qpn, epoch, ticket))
    elif lock.strategy is Strategy.IMM:
        send_immediate(lock, truth.immediate(qpn, epoch, ticket))


def send_immediate(lock, imm):
    """A WRITE_WITH_IMM without data, posted by the host on the sender's queue pair."""
    data, ring = lock._sender.staging, lock._receiver.ring
    lock.sender_qp.post_write_imm(data[:8], ring.remote().slice(ring.nbytes - 8), imm)
