"""Alternate paths, migration states, static rates and path bits on real devices: what kernels take, keep and refuse,
and that rdma-core's own Python is told the same.

Between Ethernet ports kernels have no alternate paths (core/verbs.c _ib_modify_qp: EINVAL, of mlx5 as of soft-RoCE).
"""

import errno
import os
import sys

import numpy as np
import pytest
from test_pyverbs_peer import DISTRIBUTION, pyverbs_gid

import rdmakit
from rdmakit.device import MigrationState, StaticRate, connected_pair
from rdmakit.errors import BadArgument, NotAvailable

EMULATED = "SYSFS_PATH" in os.environ


@pytest.fixture
def pyverbs(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, DISTRIBUTION])
    return pytest.importorskip("pyverbs.qp", reason="apt-get install python3-pyverbs, for this Python's version")


@pytest.fixture
def ends(contexts):
    near, far = connected_pair(*contexts)
    if near.context.ib_port(1).link_layer != "Ethernet":
        pytest.skip("of Ethernet ports")
    return near, far


def alternate(far, **address):
    return {"alt_ah_attr": {"dgid": far.endpoint().gid, **address}, "alt_port_num": 1, "alt_pkey_index": 0,
            "alt_timeout": 14}  # fmt: skip


def bytes_arrive(near, far, rng):
    source = near.pd.register(rng.integers(0, 256, 700, np.uint8))
    target = far.pd.register(np.full(700, 0xA5, np.uint8))
    near.post_write(source, target.remote())
    near.send_cq.wait()
    return np.array_equal(source.bytes, target.bytes)


def commands(qp):
    return qp.context._provider.queues == "devx"


def test_an_alternate_path_is_refused_and_changes_nothing(ends, rng):
    near, far = ends
    before = near.query()
    with pytest.raises(BadArgument, match="no alternate paths between Ethernet ports") as caught:
        near.modify("RTS", **alternate(far, sl=2))
    assert "queue pair for each port" in caught.value.remedy
    with pytest.raises(BadArgument, match=r"port must be one of the device's|no port 9"):
        near.modify("RTS", **{**alternate(far), "alt_port_num": 9})
    assert near.query() == before and before["alt_port_num"] == before["alt_timeout"] == 0
    assert not any(before["alt_ah_attr"]["dgid"]), before["alt_ah_attr"]
    assert bytes_arrive(near, far, rng)


def test_migration_states(ends, mlx5, rng):
    near, far = ends
    near.modify("RTS", path_mig_state="migrated")
    assert near.query()["path_mig_state"] == MigrationState.MIGRATED
    if near.context.device.name not in mlx5:  # soft-RoCE keeps it, and does nothing
        assert near.modify("RTS", path_mig_state="rearm").query()["path_mig_state"] == MigrationState.REARM
    elif EMULATED:
        with pytest.raises(NotAvailable if commands(near) else BadArgument, match="paths") as caught:
            near.modify("RTS", path_mig_state="rearm")
        assert "MIGRATED" in caught.value.remedy
    assert bytes_arrive(near, far, rng)


def test_a_static_rate(ends, mlx5, rng):
    """mlx5 keeps the next slower one that it has, soft-RoCE none. By command there is what a device has, or nothing."""
    near, far = ends
    near.modify("RESET")
    known = near.context.device.name in mlx5
    if commands(near) and not near.context._provider.capabilities["stat_rate_support"] >> 3 & 1:
        with pytest.raises(NotAvailable, match="static_rate 100_GBPS: the device has") as caught:
            near.connect(far, static_rate="100_GBPS")
        assert "leave it out" in caught.value.remedy
        near.modify("RESET").connect(far)
    else:
        near.connect(far, static_rate="100_GBPS")
        kept = near.query()["static_rate"]
        assert kept in (StaticRate.RATE_MAX, *(range(2, 17) if known else ()))
        if EMULATED:
            assert kept == StaticRate.RATE_MAX, "its stat_rate_support is 0"
    assert bytes_arrive(near, far, rng)
    if EMULATED:
        near.modify("RESET")
        with pytest.raises(NotAvailable if commands(near) else BadArgument):
            near.connect(far, static_rate="1200_GBPS")  # beyond the kernel's own list


def test_path_bits_of_an_address_without_a_lid_are_refused(ends):
    near, far = ends
    near.modify("RESET")
    with pytest.raises(BadArgument, match="src_path_bits 5: RoCE has no LIDs"):
        near.connect(far, src_path_bits=5)
    assert near.state.name == "INIT" and near.modify("RESET").connect(far).query()["src_path_bits"] == 0


def test_half_a_path_is_refused_before_a_kernel_sees_it(ends):
    near, far = ends
    for name in alternate(far):
        with pytest.raises(BadArgument, match="named as a whole"):
            near.modify("RTS", **{key: value for key, value in alternate(far).items() if key != name})


@pytest.mark.parametrize("kind", ["own", "proxied"])
def test_the_kernel_says_the_same_to_pyverbs(devices, spelled, pyverbs, kind):
    import pyverbs.enums as e
    from pyverbs.addr import AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsRDMAError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr

    route = {"static_rate": 16, "traffic_class": 64, "flow_label": 0x1234, "hop_limit": 9, "sl": 3}
    with rdmakit.open(spelled(devices[0], kind)) as ours, rdmakit.open(devices[1]) as there:
        if ours.ib_port(1).link_layer != "Ethernet":
            pytest.skip("of Ethernet ports")
        near, far = connected_pair(ours, there)
        near.modify("RESET").connect(far, **route)
        found, index = near.query(), ours._provider._gid_index[1]
        theirs = Context(name=devices[0])
        pd, cq = PD(theirs), CQ(theirs, 16)
        peer = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=QPCap(16, 16, 1, 1, 0)))
        attributes = QPAttr(port_num=1)
        attributes.dest_qp_num, attributes.path_mtu, attributes.qp_access_flags = far.qpn, found["path_mtu"], 15
        attributes.min_rnr_timer, attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 12, 14, 7, 7
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        way = GlobalRoute(dgid=pyverbs_gid(far.endpoint().gid), sgid_index=index, flow_label=route["flow_label"],
                          hop_limit=route["hop_limit"], traffic_class=route["traffic_class"])  # fmt: skip
        attributes.ah_attr = AHAttr(gr=way, is_global=1, port_num=1, sl=route["sl"], static_rate=route["static_rate"])
        peer.to_rts(attributes)
        kept = peer.query(e.IBV_QP_AV | e.IBV_QP_ALT_PATH | e.IBV_QP_PATH_MIG_STATE)[0]
        for name in ("static_rate", "src_path_bits", "is_global", "sl", "dlid", "port_num"):
            assert found[{"port_num": "ah_port_num"}.get(name, name)] == getattr(kept.ah_attr, name), name
        for name in ("alt_pkey_index", "alt_port_num", "alt_timeout", "path_mig_state"):
            assert found[name] == getattr(kept, name), name
        for name in ("dlid", "sl", "static_rate", "src_path_bits", "is_global"):  # its port pyverbs does not copy
            assert found["alt_ah_attr"][name] == getattr(kept.alt_ah_attr, name), name

        attributes = QPAttr(port_num=1)
        attributes.alt_ah_attr = AHAttr(gr=way, is_global=1, port_num=1)
        attributes.alt_port_num, attributes.alt_timeout = 1, 14
        with pytest.raises(PyverbsRDMAError) as caught:
            peer.modify(attributes, e.IBV_QP_ALT_PATH)
        assert caught.value.error_code == errno.EINVAL
        for each in (peer, cq, pd, theirs):
            each.close()
