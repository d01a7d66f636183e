"""rdmakit on one host, rdma-core's pyverbs on the other: WRITEs, READs, atomics and immediates in both directions."""

import numpy as np
from two_hosts import on_both

from rdmakit.device import RemoteMemory
from rdmakit.device.endpoint import gid_bytes

SIZE = 8192


def ours(host, data):
    context = host.open(0)
    qp = context.alloc_pd().create_qp(context.create_cq(64), context.create_cq(64), rq_wqes=8)
    memory = qp.pd.register(np.full(SIZE, 0xA5, np.uint8))
    word = qp.pd.register(np.full(1, 1000, np.uint64))
    qp.connect(host.swap(qp.endpoint().to_json()), mtu=4096)
    qp.post_recv([], wr_id="theirs")
    theirs = host.swap({"memory": memory.remote().to_json(), "word": word.remote().to_json()})
    remote, their_word = RemoteMemory(*theirs["memory"]), RemoteMemory(*theirs["word"])
    source = qp.pd.register(data.copy())
    back, old = qp.pd.register(np.zeros(SIZE, np.uint8)), qp.pd.register(np.zeros(1, np.uint64))
    qp.post_write(source, remote)
    qp.post_read(back, remote, fence="fence")
    qp.post_fetch_add(old, their_word, 5)
    qp.post_write_imm(source.slice(0, 64), remote, 0x12345678)
    qp.send_cq.wait(4)
    host.swap("ours are done")
    (landed,) = qp.recv_cq.wait()
    return {
        "back": np.array_equal(back.bytes, data),
        "old": int(old.buffer[0]),
        "came": memory.bytes.tobytes(),
        "word": int(word.buffer[0]),
        "imm": (landed.imm, landed.wr_id, landed.byte_len),
    }


def pyverbs(host, data):
    import pyverbs.enums as e
    from pyverbs.addr import GID, AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, RecvWR, SendWR

    from rdmakit.device import Endpoint
    from rdmakit.verbs.sysfs import choose_gid, gid_table

    context = Context(name=host.name(0))
    chosen = choose_gid(gid_table(host.name(0), 1), True)
    pd, cq = PD(context), CQ(context, 64)
    qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=QPCap(64, 16, 1, 1, 0)))
    rights = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE
    rights |= e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_ATOMIC
    memory, word, source, old = (MR(pd, size, rights) for size in (SIZE, 8, SIZE, 8))
    memory.write(b"\x5a" * SIZE, SIZE)
    word.write((2000).to_bytes(8, "little"), 8)
    source.write(data.tobytes(), SIZE)
    mine = {"qpn": qp.qp_num, "gid": chosen.gid, "mtu": 4096}
    peer = Endpoint.of(host.swap(mine))
    digits = gid_bytes(peer.gid).hex()
    gid = GID(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
    attributes = QPAttr(port_num=1)
    attributes.dest_qp_num, attributes.path_mtu, attributes.qp_access_flags = peer.qpn, 5, rights
    attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
    attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
    attributes.ah_attr = AHAttr(gr=GlobalRoute(dgid=gid, sgid_index=chosen.index), is_global=1, port_num=1)
    qp.to_rts(attributes)
    qp.post_recv(RecvWR(num_sge=1, sg=[SGE(memory.buf, SIZE, memory.lkey)], wr_id=9))
    theirs = host.swap({"memory": (memory.buf, memory.rkey, SIZE), "word": (word.buf, word.rkey, 8)})
    remote, their_word = (RemoteMemory.from_json(theirs[name]) for name in ("memory", "word"))

    def done(count):
        found = []
        while len(found) < count:
            found += cq.poll(count - len(found))[1]
        return found

    write = SendWR(num_sge=1, sg=[SGE(source.buf, SIZE, source.lkey)], opcode=e.IBV_WR_RDMA_WRITE,
                   send_flags=e.IBV_SEND_SIGNALED)  # fmt: skip
    write.set_wr_rdma(remote.rkey, remote.address)
    add = SendWR(num_sge=1, sg=[SGE(old.buf, 8, old.lkey)], opcode=e.IBV_WR_ATOMIC_FETCH_AND_ADD,
                 send_flags=e.IBV_SEND_SIGNALED)  # fmt: skip
    add.set_wr_atomic(their_word.rkey, their_word.address, 7, 0)
    imm = int.from_bytes((77).to_bytes(4, "big"), "little")
    immediate = SendWR(num_sge=1, sg=[SGE(source.buf, 64, source.lkey)], opcode=e.IBV_WR_RDMA_WRITE_WITH_IMM,
                       send_flags=e.IBV_SEND_SIGNALED, imm_data=imm)  # fmt: skip
    immediate.set_wr_rdma(remote.rkey, remote.address)
    for request in (write, add, immediate):
        qp.post_send(request)
    completions = done(4)  # three of ours, one receive
    host.swap("theirs are done")
    received = [c for c in completions if c.opcode == e.IBV_WC_RECV_RDMA_WITH_IMM]
    found = {
        "statuses": {c.status for c in completions},
        "came": memory.read(SIZE, 0),
        "word": int.from_bytes(word.read(8, 0), "little"),
        "old": int.from_bytes(old.read(8, 0), "little"),
        "imm": [int.from_bytes(c.imm_data.to_bytes(4, "little"), "big") for c in received],
    }
    for each in (qp, memory, word, source, old, cq, pd, context):
        each.close()
    return found


def test_both_understand_each_other(rng, pyverbs_modules):
    here, there = rng.integers(0, 256, (2, SIZE), np.uint8)
    us, them = on_both(lambda host: ours(host, here), lambda host: pyverbs(host, there))
    assert us["back"] and them["came"] == here.tobytes() and us["came"] == there.tobytes()
    assert (us["old"], them["word"], them["old"], us["word"]) == (2000, 2005, 1000, 1007)
    assert us["imm"] == (77, "theirs", 64) and them["imm"] == [0x12345678] and them["statuses"] == {0}
