"""RC between two hosts, on either port: WRITE, READ, atomics, immediates, SEND, the limits of sizes."""

import numpy as np
import pytest
from two_hosts import PORTS, on_both

from rdmakit.device import RemoteMemory

POISON = 0xA5


def queue_pair(host, port, **options):
    context = host.open(port)
    qp = context.alloc_pd().create_qp(context.create_cq(256), context.create_cq(256), **options)
    return host.connect(qp)


@pytest.mark.parametrize("port", PORTS)
def test_writes_and_reads_carry_every_byte(port, rng):
    """One byte, the ends of an MTU, several MTUs, a megabyte; what lies behind stays as it was."""
    sizes = [1, 7, 4095, 4096, 4097, 100_003, 1 << 20]
    data = rng.integers(0, 256, sum(sizes), np.uint8)

    def near(host):
        qp = queue_pair(host, port)
        source = qp.pd.register(data.copy())
        target = RemoteMemory.from_json(host.hear())
        back = qp.pd.register(np.full(data.size, POISON, np.uint8))
        at = 0
        for size in sizes:
            qp.post_write(source.slice(at, size), (target.address + at, target.rkey))
            qp.send_cq.wait()
            qp.post_read(back.slice(at, size), (target.address + at, target.rkey))
            assert qp.send_cq.wait()[0].byte_len == size
            at += size
        host.tell("done")
        return np.array_equal(back.bytes, data)

    def far(host):
        qp = queue_pair(host, port)
        target = qp.pd.register(np.full(data.size + 64, POISON, np.uint8))
        host.tell(target.remote().to_json())
        host.hear()
        return np.array_equal(target.bytes[: data.size], data) and bool((target.bytes[data.size :] == POISON).all())

    assert on_both(near, far) == (True, True)


@pytest.mark.parametrize("port", PORTS)
def test_atomics_of_both_hosts_meet_in_one_word(port, rng):
    """Each host adds to the other's word and to its own neighbour's; compare-and-swap wins once."""
    start, count = int(rng.integers(0, 1 << 62)), 40

    def either(host):
        qp = queue_pair(host, port)
        words = qp.pd.register(np.array([start, start], np.uint64))
        old = qp.pd.register(np.full(1, 0xA5A5, np.uint64))
        theirs = RemoteMemory.from_json(host.swap(words.remote().to_json()))
        seen = []
        for i in range(count):
            qp.post_fetch_add(old, theirs, i)
            qp.send_cq.wait()
            seen.append(int(old.buffer[0]))
        qp.post_cmp_swap(old, theirs.slice(8, 8), start, 77)
        qp.send_cq.wait()
        first = int(old.buffer[0])
        qp.post_cmp_swap(old, theirs.slice(8, 8), start, 99)
        qp.send_cq.wait()
        host.swap("done")
        return seen, first, int(old.buffer[0]), words.buffer.tolist()

    for seen, first, second, words in on_both(either, either):
        assert seen == [start + sum(range(i)) for i in range(count)]
        assert (first, second) == (start, 77) and words == [start + sum(range(count)), 77]


@pytest.mark.parametrize("port", PORTS)
def test_immediates_and_sends_meet_receives_in_order(port, rng):
    data = rng.integers(0, 256, 3 * 256, np.uint8)

    def near(host):
        qp = queue_pair(host, port)
        source, target = qp.pd.register(data.copy()), RemoteMemory.from_json(host.hear())
        qp.post_write_imm(source.slice(0, 256), target, 0xDEADBEEF)
        qp.post_send(source.slice(256, 256))
        qp.post_send_imm(source.slice(512, 256), 7)
        qp.send_cq.wait(3)
        return host.hear()

    def far(host):
        qp = queue_pair(host, port, rq_wqes=8)
        target = qp.pd.register(np.full(3 * 256, POISON, np.uint8))
        for i in range(3):
            qp.post_recv(target.slice(256 * i, 256), wr_id=i)
        host.tell(target.remote().to_json())
        got = [(c.wr_id, c.opcode, c.imm, c.byte_len) for c in qp.recv_cq.wait(3, timeout=30)]
        host.tell("done")
        return got, np.array_equal(target.bytes, data)

    _, (got, whole) = on_both(near, far)
    assert got == [
        (0, "RECV_RDMA_WITH_IMM", 0xDEADBEEF, 256),
        (1, "RECV", None, 256),
        (2, "RECV_IMM", 7, 256),
    ]
    assert whole
