"""A queue pair of pyverbs at the other end: what rdma-core's own Python sends and receives, ours does too."""

import sys

import numpy as np
import pytest

import rdmakit

DISTRIBUTION = "/usr/lib/python3/dist-packages"


@pytest.fixture
def pyverbs(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, DISTRIBUTION])
    return pytest.importorskip("pyverbs.qp", reason="apt-get install python3-pyverbs, for this Python's version")


def test_writes_both_ways(devices, pyverbs, rng):
    import pyverbs.enums as e
    from pyverbs.addr import AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, SendWR

    with rdmakit.open(devices[0]) as ours:
        qp = ours.alloc_pd().create_qp(ours.create_cq(64))
        theirs = Context(name=devices[1])
        pd, cq = PD(theirs), CQ(theirs, 64)
        peer = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=QPCap(64, 16, 1, 1, 0)))
        with rdmakit.open(devices[1]) as known:
            gid, index = known.port(1).gid, known._provider._gid_index[1]
        attributes = QPAttr(port_num=1)
        attributes.dest_qp_num, attributes.path_mtu, attributes.qp_access_flags = qp.qpn, 3, 15
        attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        route = GlobalRoute(dgid=pyverbs_gid(ours.port(1).gid), sgid_index=index)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        peer.to_rts(attributes)
        qp.connect({"qpn": peer.qp_num, "gid": gid, "mtu": 1024})

        payload = rng.integers(0, 256, 4096, np.uint8)
        target = MR(pd, 4096, 15)
        target.write(b"\xa5" * 4096, 4096)
        source = qp.pd.register(payload)
        qp.post_write(source, (target.buf, target.rkey))
        qp.send_cq.wait()
        assert target.read(4096, 0) == payload.tobytes()

        landing = qp.pd.register(np.full(4096, 0xA5, np.uint8))
        request = SendWR(num_sge=1, sg=[SGE(target.buf, 4096, target.lkey)], opcode=e.IBV_WR_RDMA_WRITE,
                         send_flags=e.IBV_SEND_SIGNALED)  # fmt: skip
        request.set_wr_rdma(landing.rkey, landing.address)
        peer.post_send(request)
        got = []
        while not got:
            _, got = cq.poll(1)
        assert got[0].status == e.IBV_WC_SUCCESS and np.array_equal(landing.bytes, payload)
        for each in (peer, target, cq, pd, theirs):
            each.close()


def pyverbs_gid(text):
    from pyverbs.addr import GID

    from rdmakit.device.endpoint import gid_bytes

    digits = gid_bytes(text).hex()
    return GID(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
