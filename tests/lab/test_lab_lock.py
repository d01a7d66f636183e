"""The sequence lock between two hosts, over soft-RoCE: every strategy that plain verbs can say, on clean and bad links.

Masked atomics and eager lines are left to devices that have them: `amo` is the FETCH_ADD of 8 bytes. Its local result
is used by nobody, so rdma_rxe's defect (a result that is not written under reordering) does no harm here.
"""

import numpy as np
import pytest
from two_hosts import on_both, shape

from rdmakit.signal import HostReceiver, HostSender

# What a bad network does to packets, both ways. Delays of milliseconds let netem reorder.
WEATHER = {
    "clean": (),
    "loss": ("netem", "loss", "2%"),
    "reorder": ("netem", "delay", "2ms", "reorder", "20%", "50%"),
    "duplicate": ("netem", "duplicate", "10%"),
}


def carry(way, port, payloads, **options):
    """All payloads from h0 to h1; what h1 took, and what each end counts."""

    def near(host):
        sender = HostSender(host.open(port).alloc_pd(), strategy=way, **options)
        sender.connect(host.swap(sender.offer()))
        host.swap("connected")
        for payload in payloads:
            sender.send(payload, timeout=30)
        sender.finish(timeout=30)
        host.swap("finished")
        return sender.next_ticket, sender.credit

    def far(host):
        receiver = HostReceiver(host.open(port).alloc_pd(), strategy=way, **options)
        receiver.connect(host.swap(receiver.offer()))
        host.swap("connected")
        got = [receiver.receive(timeout=30) for _ in payloads]
        receiver.finish(timeout=30)
        host.swap("finished")  # who leaves sooner cannot acknowledge once more what the network has lost
        return got, receiver.signed_off

    return on_both(near, far, seconds=100)


def random_payloads(rng, count, most):
    return [rng.integers(0, 256, int(n), np.uint8).tobytes() for n in rng.integers(0, most + 1, count)]


@pytest.mark.parametrize(("way", "port"), [("amo", 0), ("imm", 1), ("write", 0), ("cqe", 1)])
def test_every_byte_in_order(way, port, rng):
    """100 transfers of 0 … 9000 bytes through 16 slots."""
    payloads = random_payloads(rng, 100, 9000)
    (sent, credit), (got, signed) = carry(way, port, payloads, slots=16, max_payload=9000)
    assert got == payloads and sent == signed == credit == 100


@pytest.mark.parametrize("weather", [name for name in WEATHER if name != "clean"])
@pytest.mark.parametrize("way", ["amo", "imm", "write"])
def test_nothing_is_lost_and_nothing_comes_twice_in_bad_weather(way, weather, rng):
    shape(*WEATHER[weather], ports=[0])
    payloads = random_payloads(rng, 60, 9000)
    (sent, _), (got, signed) = carry(way, 0, payloads, slots=16, max_payload=9000)
    assert got == payloads and sent == signed == 60
