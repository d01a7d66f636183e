"""What networks and peers do: links go down, packets are lost, a host loses its power. No transfer is lost."""

import time

import numpy as np
import pytest
from two_hosts import die, on_both, pull, shape

from rdmakit.device import RemoteMemory
from rdmakit.errors import CompletionError, HangError
from rdmakit.signal import HostReceiver, HostSender


@pytest.mark.parametrize("way", ["amo", "imm", "write"])
def test_a_link_goes_down_and_the_other_port_goes_on(way, rng):
    """The cable of port 0 is pulled in the middle: both ends go on over port 1, from what was signed off."""
    payloads = [rng.integers(0, 256, int(n), np.uint8).tobytes() for n in rng.integers(0, 4097, 100)]
    options = {"strategy": way, "slots": 16, "max_payload": 4096}

    def near(host):
        ticket, port, failures, pulled = 0, 0, [], []
        while ticket < len(payloads):
            first = host.swap(None) if failures else 0
            sender = HostSender(host.open(port).alloc_pd(), first_ticket=first, epoch=1 + port, **options)
            sender.connect(host.swap(sender.offer()))
            host.swap("connected")
            ticket = first
            try:
                for ticket in range(first, len(payloads)):
                    sender.send(payloads[ticket], timeout=20)
                    if ticket == 40 and port == 0:
                        pull(0, 0)
                        pulled.append(ticket)
                sender.finish(timeout=20)
                ticket = len(payloads)
            except (CompletionError, HangError) as error:
                failures.append(f"{type(error).__name__}: {error.what}")
                port = 1
        host.hear()
        return failures, pulled, port, sender.next_ticket

    def far(host):
        got, port = [], 0
        while len(got) < len(payloads):
            if port:
                host.swap(len(got))
            receiver = HostReceiver(host.open(port).alloc_pd(), first_ticket=len(got), epoch=1 + port, **options)
            receiver.connect(host.swap(receiver.offer()))
            host.swap("connected")
            try:
                while len(got) < len(payloads):
                    got.append(receiver.receive(timeout=20 if port else 5))
                receiver.finish(timeout=20)
            except (CompletionError, HangError):
                port = 1
        host.tell("all is here")
        return got, port

    (failures, pulled, port, sent), (got, other_port) = on_both(near, far)
    print(failures)
    assert got == payloads and sent == len(payloads)
    assert pulled == [40] and len(failures) == 1 and port == other_port == 1


@pytest.mark.parametrize(
    "weather",
    [("loss", "3%"), ("delay", "2ms", "reorder", "25%", "50%"), ("duplicate", "20%"), ("loss", "1%", "corrupt", "1%")],
    ids=lambda words: words[-2],
)
def test_atomics_count_each_time_once_in_bad_weather(weather, rng):
    """Counters at the far host are exact. Local results are judged by a sentinel: rdma_rxe may leave one unwritten."""
    shape("netem", *weather, ports=[0])
    adds = rng.integers(1, 1 << 32, 60).tolist()

    def near(host):
        context = host.open(0)
        qp = host.connect(context.alloc_pd().create_qp(context.create_cq(64)), timeout=14)
        theirs = RemoteMemory.from_json(host.hear())
        sentinel = 0x5EA150B5EA150B5
        old = qp.pd.register(np.full(len(adds), sentinel, np.uint64))
        for i, add in enumerate(adds):
            qp.post_fetch_add(old.slice(8 * i, 8), theirs, int(add))
            qp.send_cq.wait(timeout=30)
        host.tell("done")
        return [None if value == sentinel else value for value in old.buffer.tolist()]

    def far(host):
        context = host.open(0)
        qp = host.connect(context.alloc_pd().create_qp(context.create_cq(64)))
        word = qp.pd.register(np.zeros(1, np.uint64))
        host.tell(word.remote().to_json())
        host.hear(60)
        return int(word.buffer[0])

    seen, total = on_both(near, far)
    assert total == sum(adds), "each was added once"
    unwritten = sum(value is None for value in seen)
    print(f"{unwritten} of {len(adds)} local results were never written by rdma_rxe")
    assert all(value in (None, sum(adds[:i])) for i, value in enumerate(seen)) and unwritten < len(adds) // 2


def test_a_peer_without_power_is_noticed(rng):
    """The far host is killed: the next WRITE ends in a typed error within the retries that were agreed, no hang."""

    def near(host):
        context = host.open(0)
        qp = host.connect(context.alloc_pd().create_qp(context.create_cq(64)), timeout=12, retry_cnt=3)
        source, theirs = qp.pd.register(np.ones(64, np.uint8)), RemoteMemory.from_json(host.hear())
        qp.post_write(source, theirs)
        qp.send_cq.wait()
        host.tell("now")
        with pytest.raises(EOFError):
            host.hear()
        began = time.monotonic()
        qp.post_write(source, theirs)
        with pytest.raises(CompletionError) as caught:
            qp.send_cq.wait(timeout=20)
        assert qp.state.name == "ERR" and caught.value.remedy
        return caught.value.wc_status, time.monotonic() - began

    def far(host):
        context = host.open(0)
        qp = host.connect(context.alloc_pd().create_qp(context.create_cq(64)))
        memory = qp.pd.register(np.zeros(64, np.uint8))
        host.tell(memory.remote().to_json())
        host.hear()
        die()

    (status, took), _ = on_both(near, far, far_dies=True)
    assert status == "RETRY_EXC_ERR" and took < 15
