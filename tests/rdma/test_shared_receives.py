"""Shared receive queues: two queue pairs of pyverbs's draw from one, and ours send to them."""

import sys

import numpy as np
import pytest

import rdmakit

DISTRIBUTION = "/usr/lib/python3/dist-packages"
SIZE, WRS = 256, 16


@pytest.fixture
def pyverbs(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, DISTRIBUTION])
    return pytest.importorskip("pyverbs.srq", reason="apt-get install python3-pyverbs, for this Python's version")


def gid_of(ours):
    from pyverbs.addr import GlobalRoute
    from test_pyverbs_peer import pyverbs_gid

    return lambda index: GlobalRoute(dgid=pyverbs_gid(ours.port(1).gid), sgid_index=index)


def test_two_queue_pairs_share_receives(devices, pyverbs, rng):
    import pyverbs.enums as e
    from pyverbs.addr import AHAttr
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.srq import SRQ, SrqAttr, SrqInitAttr
    from pyverbs.wr import SGE, RecvWR

    with rdmakit.open(devices[0]) as ours, rdmakit.open(devices[1]) as known:
        gid, index = known.port(1).gid, known._provider._gid_index[1]
        theirs = Context(name=devices[1])
        pd, cq = PD(theirs), CQ(theirs, 64)
        try:
            srq = SRQ(pd, SrqInitAttr(SrqAttr(max_wr=WRS, max_sge=1)))
        except Exception as error:
            pytest.skip(f"no shared receive queues on {devices[1]}: {error}")
        memory = MR(pd, SIZE * WRS, 15)

        def post(slot):
            entry = SGE(memory.buf + slot * SIZE, SIZE, memory.lkey)
            srq.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[entry]))

        senders, receivers = [], []
        for _ in range(2):
            qp = ours.alloc_pd().create_qp(ours.create_cq(64))
            init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, srq=srq, cap=QPCap(8, 0, 1, 0, 0))
            peer = QP(pd, init)
            attributes = QPAttr(port_num=1)
            attributes.dest_qp_num, attributes.path_mtu, attributes.qp_access_flags = qp.qpn, 3, 15
            attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
            attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
            attributes.ah_attr = AHAttr(gr=gid_of(ours)(index), is_global=1, port_num=1)
            peer.to_rts(attributes)
            qp.connect({"qpn": peer.qp_num, "gid": gid, "mtu": 1024})
            senders.append(qp)
            receivers.append(peer)

        for slot in range(WRS):
            post(slot)
        turn = 0
        for round_ in range(5):  # over the list's end, and in an order that is not that of the ring
            slots = []
            for _ in range(WRS):
                which = int(rng.integers(2))
                qp, payload = senders[which], rng.integers(0, 256, int(rng.integers(1, SIZE + 1)), np.uint8)
                source = qp.pd.register(payload)
                qp.post_send(source[:])
                qp.send_cq.wait()
                got = []
                while not got:
                    _, got = cq.poll(1)
                (completion,) = got
                assert completion.status == e.IBV_WC_SUCCESS and completion.byte_len == payload.size
                assert completion.qp_num == receivers[which].qp_num
                at = completion.wr_id * SIZE
                assert memory.read(payload.size, at) == payload.tobytes(), (round_, turn)
                slots.append(completion.wr_id)
                source.close()
                turn += 1
            assert sorted(slots) == list(range(WRS)), "each receive is used once"
            for slot in rng.permutation(slots):
                post(int(slot))

        srq.modify(SrqAttr(srq_limit=4), e.IBV_SRQ_LIMIT)
        assert srq.query().srq_limit == 4
        for qp in senders:
            for _ in range(7):
                source = qp.pd.register(np.ones(8, np.uint8))
                qp.post_send(source[:])
                qp.send_cq.wait()
                source.close()
        event = theirs.get_async_event()
        assert event.event_type == e.IBV_EVENT_SRQ_LIMIT_REACHED
        event.ack()
        assert srq.query().srq_limit == 0, "told once"
        for peer in receivers:
            peer.close()
        srq.close()
