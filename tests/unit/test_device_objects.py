"""The public objects: making, closing and showing them, and every misuse that they refuse."""

import array
import gc
import json

import numpy as np
import pytest

import rdmakit
from rdmakit.device import (
    MR,
    Endpoint,
    QPState,
    RemoteMemory,
    connected_pair,
)
from rdmakit.errors import (
    BadArgument,
    BadState,
    ForeignObject,
    ObjectBusy,
    QueueFull,
    RdmakitError,
)


@pytest.fixture
def world():
    return rdmakit.World(hosts=2)


@pytest.fixture
def context(world):
    return world.open(0)


@pytest.fixture
def pair(world):
    return connected_pair(world.open(0), world.open(1), rq_wqes=4)


def test_pairs_beside_each_other_share_memory(world):
    here, there = world.open(0), world.open(1)
    first = connected_pair(here, there)
    second = connected_pair(here, there, beside=first)
    assert [qp.pd for qp in second] == [qp.pd for qp in first]
    source = first[0].pd.register(world.array(64, fill=9))
    target = first[1].pd.register(world.array(64))
    second[0].post_write(source, target)
    second[0].send_cq.wait()
    assert (target.bytes == 9).all()
    with pytest.raises(BadArgument, match="other devices"):
        connected_pair(there, here, beside=first)


# ---- memory regions


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros((3, 5), np.float32),
        bytearray(17),
        array.array("d", [1.0, 2.0]),
        memoryview(bytearray(8)),
        np.zeros(4, np.uint16)[1:3],
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_a_region_is_the_buffer_itself(context, buffer):
    mr = context.alloc_pd().register(buffer)
    assert mr.nbytes == memoryview(buffer).nbytes
    mr.bytes[0] = 0x5A
    assert memoryview(buffer).cast("B")[0] == 0x5A
    assert isinstance(mr, MR) and f"{mr.lkey:#x}" in repr(mr)


class DlpackOnly:
    """A tensor of some other library: all that NumPy may know of it is DLPack."""

    def __init__(self, inner):
        self.inner = inner

    def __dlpack__(self, **options):
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.inner.__dlpack_device__()


class OnAnotherDevice(DlpackOnly):
    def __dlpack_device__(self):
        return 2, 0  # kDLCUDA


def test_a_region_over_dlpack_is_no_copy(context):
    inner = np.zeros(8, np.int32)
    mr = context.alloc_pd().register(DlpackOnly(inner), "local_write")
    mr.bytes[:4] = 1
    assert inner[0] == 0x01010101 and mr.address == inner.ctypes.data
    with pytest.raises(BadArgument, match="DLPack"):
        context.alloc_pd().register(OnAnotherDevice(inner))


@pytest.mark.parametrize(
    ("buffer", "what"),
    [
        (np.zeros((4, 4))[:, 1], "gaps"),
        (np.zeros((4, 4)).T[:2], "gaps"),
        (np.zeros(0), "empty"),
        (b"read-only", "read-only"),
        (np.array([object()]), "objects"),
        ("text", "not a buffer"),
        (7, "not a buffer"),
    ],
)
def test_what_cannot_be_a_region_is_refused(context, buffer, what):
    with pytest.raises(BadArgument, match=what) as caught:
        context.alloc_pd().register(buffer)
    assert caught.value.rule


def test_read_only_memory_may_be_read(context):
    assert context.alloc_pd().register(b"read-only", "remote_read").nbytes == 9
    with pytest.raises(BadArgument, match="unknown access right"):
        context.alloc_pd().register(bytearray(8), "remote_wriet")


def test_slices_stay_inside(context):
    mr = context.alloc_pd().register(np.zeros(100, np.uint8))
    part = mr.slice(10, 20).slice(5)
    assert (part.address - mr.address, part.nbytes, part.lkey) == (15, 15, mr.lkey)
    assert mr[16:32].sge() == (mr.address + 16, 16, mr.lkey)
    assert RemoteMemory.from_json(mr.remote().to_json()) == mr.remote()
    for offset, length in ((-1, 4), (0, 101), (96, 5), (0, 0), (100, None)):
        with pytest.raises(BadArgument, match="slice outside"):
            mr.slice(offset, length)
    with pytest.raises(BadArgument, match="mr\\[start:stop\\]"):
        mr[::2]


def test_a_region_of_a_gpu_is_cut_as_one_of_the_host_is(context):
    """Its bytes are not looked at, so the host's memory stands for a GPU's."""
    memory = np.zeros(100, np.uint8)
    mr = context.alloc_pd().register_gpu(memory.ctypes.data, memory.nbytes, owner=memory)
    assert mr.remote() == RemoteMemory(memory.ctypes.data, mr.rkey, 100)
    assert mr[16:32] == RemoteMemory(mr.address + 16, mr.rkey, 16) and mr.sge(16, 16) == (mr.address + 16, 16, mr.lkey)
    with pytest.raises(BadArgument, match="mr\\[start:stop\\]"):
        mr[::2]
    with pytest.raises(BadArgument, match="slice outside"):
        mr.sge(96, 5)


def test_a_region_keeps_its_buffer_alive(context):
    mr = context.alloc_pd().register(np.full(1 << 20, 7, np.uint8))
    gc.collect()
    assert mr.bytes.sum() == 7 << 20


# ---- teardown


def test_parents_in_use_cannot_be_closed(context):
    pd, cq = context.alloc_pd(), context.create_cq(8)
    qp = pd.create_qp(cq)
    for parent in (pd, cq, context):
        with pytest.raises(ObjectBusy, match="in use") as caught:
            parent.close()
        assert caught.value.remedy
    assert "QP" in caught.value.rule or "PD" in caught.value.rule
    qp.close()
    qp.close()  # idempotent
    pd.close()
    cq.close()
    context.close()
    assert context.closed and "closed" in repr(context)


def test_leaving_a_with_block_closes_everything_inside_in_order(world):
    with world.open(0) as context:
        cq = context.create_cq(8)
        pd = context.alloc_pd()
        qp = pd.create_qp(cq)
        mr = pd.register(bytearray(8))
    assert all(made.closed for made in (cq, pd, qp, mr, context))
    assert world._core.live_mrs(0) == 0


def test_an_error_in_a_with_block_is_the_one_that_is_seen(world):
    with pytest.raises(ZeroDivisionError), world.open(0) as context:
        cq = context.create_cq(8)
        keep = context.alloc_pd().create_qp(cq)
        with cq:
            1 / 0  # noqa: B018
    assert keep.closed


def test_dropping_names_frees_the_device_in_any_order(world):
    def build():
        context = world.open(0)
        pd, cq = context.alloc_pd(), context.create_cq(8)
        qp, mr = pd.create_qp(cq, sq_wqebbs=8), pd.register(bytearray(64))
        qp.device_handle()
        context.loop = [context, pd, cq, qp, mr]  # a cycle: the collector chooses the order
        return pd.handle

    before = build()
    gc.collect()
    assert world._core.live_mrs(0) == 0  # also the sink that the handle needed
    with pytest.raises(Exception, match="PD"):
        world._core.dealloc_pd(0, before)


def test_a_half_made_object_is_dropped_quietly(context, capsys):
    with pytest.raises(RdmakitError):
        context.create_cq(0)
    with pytest.raises(RdmakitError):
        context.alloc_pd().create_qp(context.create_cq(4), sq_wqebbs=1 << 20)
    gc.collect()
    assert capsys.readouterr().err == ""


def test_closed_objects_refuse_use(pair):
    near, _ = pair
    context, pd, cq = near.context, near.pd, near.send_cq
    mr = pd.register(bytearray(8))
    mr.close()
    with pytest.raises(BadState, match="is closed"):
        near.post_write(mr, (0, 0))
    near.close()
    uses = [
        lambda: near.post_nop(),
        lambda: near.modify("ERR"),
        lambda: near.query(),
        lambda: near.connect(near.endpoint()),
        lambda: near.device_handle(),
    ]
    pd.close()
    uses += [lambda: pd.register(bytearray(8)), lambda: pd.create_qp(cq)]
    cq.close()
    uses += [lambda: cq.poll(), lambda: cq.wait(), lambda: cq.device_handle()]
    context.close()
    uses += [lambda: context.alloc_pd(), lambda: context.create_cq(4), lambda: context.counters]
    for use in uses:
        with pytest.raises(BadState, match="is closed"):
            use()
    assert near.sq_view().shape == (128,)  # views stay valid: the memory is ours


# ---- who belongs to whom


def test_foreign_objects_are_refused(world, pair):
    near, far = pair
    other = world.open(0)
    with pytest.raises(ForeignObject, match="send_cq is of another context"):
        near.pd.create_qp(other.create_cq(4))
    with pytest.raises(ForeignObject, match="recv_cq is of another context"):
        near.pd.create_qp(near.send_cq, far.send_cq)
    with pytest.raises(ForeignObject, match="another protection domain"):
        near.post_send(far.pd.register(bytearray(8)))
    with pytest.raises(ForeignObject, match="another protection domain"):
        near.post_recv(near.context.alloc_pd().register(bytearray(8))[:4])


# ---- the state machine


def test_forbidden_transitions_are_refused_and_change_nothing(context):
    qp = context.alloc_pd().create_qp(context.create_cq(4))
    for target in ("RTR", "RTS", "SQD", "SQE"):
        with pytest.raises(BadState, match=f"RESET to {target}") as caught:
            qp.modify(target)
        assert "INIT" in caught.value.remedy
    assert qp.state is QPState.RESET
    with pytest.raises(BadArgument, match="RESET to INIT"):
        qp.modify("INIT")  # lacks attributes
    qp.modify("init", pkey_index=0, port_num=1, qp_access_flags="remote_write")
    assert qp.state is QPState.INIT
    with pytest.raises(BadArgument, match="no such QP state"):
        qp.modify("READY")
    with pytest.raises(BadArgument, match="unknown QP attribute"):
        qp.modify("INIT", port=1)
    with pytest.raises(BadArgument, match="no such MTU"):
        qp.modify("RTR", path_mtu=1500)


def test_posting_in_a_wrong_state_is_refused(context):
    qp = context.alloc_pd().create_qp(context.create_cq(4), rq_wqes=2)
    with pytest.raises(BadState, match="cannot send") as caught:
        qp.post_nop()
    assert caught.value.facts["seen"] == "RESET"
    with pytest.raises(BadState, match="cannot receive"):
        qp.post_recv([])
    qp.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    assert qp.post_recv([]) == 0
    with pytest.raises(BadState, match="cannot send"):
        qp.post_nop()


def test_connecting_twice_needs_a_reset(pair):
    near, far = pair
    with pytest.raises(BadState, match="connect starts from RESET"):
        near.connect(far)
    near.post_nop()
    near.modify("RESET")
    assert (near.posted, near.completed, near.send_cq.poll()) == (0, 0, [])
    near.connect(far)
    far.modify("RESET").connect(near)
    near.post_nop()
    assert near.send_cq.wait().all_ok


def test_endpoints_travel_as_json(pair):
    near, _ = pair
    there = Endpoint.from_json(near.endpoint().to_json())
    assert there == near.endpoint() == Endpoint.of(near) == Endpoint.of(json.loads(there.to_json()))
    for bad in ("{}", "not json", '{"qpn": 1}', '{"qpn": -1, "gid": "::1"}', '{"qpn": 1, "gid": "nonsense"}'):
        with pytest.raises(BadArgument):
            Endpoint.from_json(bad)
    with pytest.raises(BadArgument, match="not an endpoint"):
        near.connect(42)
    with pytest.raises(BadArgument, match="no such port"):
        near.endpoint(3)



def test_attributes_that_connect_would_drop_are_refused(pair):
    near, far = pair
    near.modify("RESET")
    for wrong, remedy in (({"path_mtu": 1024}, "mtu=…"), ({"port_num": 1}, "port=…"), ({"qkey": 7}, "QP.modify"),
                          ({"cur_qp_state": "INIT"}, "QP.modify")):  # fmt: skip
        with pytest.raises(BadArgument) as caught:
            near.connect(far, **wrong)
        assert remedy in caught.value.remedy and near.state.name == "RESET", wrong
    near.connect(far, traffic_class=96, sl=3, hop_limit=9)
    found = near.query()
    assert (found["traffic_class"], found["sl"], found["hop_limit"]) == (96, 3, 9)
    with pytest.raises(BadArgument, match="traffic_class=256"):
        near.modify("RESET").connect(far, traffic_class=256)


# ---- rings


def test_a_full_ring_says_so_and_polling_frees_it(pair):
    near, _ = pair
    with near.batch():
        for i in range(128):
            assert near.post_nop(signalled=i == 127) == i
        with pytest.raises(QueueFull) as caught:
            near.post_nop()
    assert (caught.value.facts["posted"], caught.value.facts["completed"]) == (128, 0)
    near.send_cq.wait()
    assert near.completed == 128 and near.post_nop() == 128


def test_receive_rings_are_bounded_too(pair):
    near, far = pair
    for i in range(4):
        assert far.post_recv([]) == i
    with pytest.raises(QueueFull, match="receive queue"):
        far.post_recv([])
    with pytest.raises(BadArgument, match="too many buffers"):
        far.post_recv([far.pd.register(bytearray(8))] * 2)
    bare = near.pd.create_qp(near.context.create_cq(4)).modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    with pytest.raises(QueueFull, match="no receive queue"):
        bare.post_recv([])


def test_views_are_the_live_rings(pair):
    near, _ = pair
    view = near.sq_view()
    near.post_nop(wr_id="mine")
    assert view["qpn_ds"][0] == near.qpn << 8 | 1
    assert near.dbrec_view()["snd"][0] == 1
    assert near.wqe(0).opcode_name == "NOP"
    (done,) = near.send_cq.wait()
    assert done.wr_id == "mine" and done.wqe.opcode_name == "NOP" and done.cqe.qpn == near.qpn
    assert near.send_cq.view()["op_own"][0] >> 4 == 0
    assert near.send_cq.dbrec_view()["set_ci"][0] == 1


@pytest.mark.parametrize("size", [0, 8, 17, 1040])
def test_raw_bytes_of_impossible_size_are_refused(pair, size):
    with pytest.raises(BadArgument, match="no WQE has this size"):
        pair[0].post_wqe(bytes(size))


def test_bad_arguments_of_verbs(pair):
    near, _ = pair
    mr = near.pd.register(bytearray(64))
    for post, what in (
        (lambda: near.post_write(np.zeros(4), mr), "not local memory"),
        (lambda: near.post_write([mr, "x"], mr), "not local memory"),
        (lambda: near.post_write(mr, "there"), "not remote memory"),
        (lambda: near.post_write(bytes(29), mr), "too long to travel inline"),
        (lambda: near.post_write(mr, mr, fence="picket"), "no such fence"),
        (lambda: near.post_fetch_add(mr, mr, 1), "wrong size"),
        (lambda: near.post_fetch_add(mr[:8], mr[4:], 1), "misaligned"),
        (lambda: near.post_fetch_add([mr[:8], mr[8:16]], mr, 1), "one place"),
        (lambda: near.post_masked_fetch_add(mr[:8], mr, 1, width=2), "no such masked atomic"),
    ):
        with pytest.raises(BadArgument, match=what):
            post()
    assert near.posted == 0


# ---- what they look like


def test_everything_shows_itself(world, pair):
    near, _ = pair
    mr = near.pd.register(bytearray(64), name="inbox")
    near.post_nop()
    done = near.send_cq.wait()
    opened = (near.context.device, near.context, near.context.port(1))
    for shown in (world, *opened, near.pd, mr, near, near.send_cq, done, done[0]):
        text = repr(shown)
        assert "\n" not in text and "object at 0x" not in text
        html = shown._repr_html_()
        assert html.startswith("<") and "<pre>" not in html
    assert "inbox" in mr._repr_html_() and "RTS" in near._repr_html_()
    assert "400" in near.context.device._repr_html_() and "emu:host=0" in repr(near.context.device)
    near.close()
    assert "closed" in repr(near) and near._repr_html_()


def test_ports_count_what_passes(pair):
    near, far = pair
    mr, there = near.pd.register(bytearray(1000)), far.pd.register(bytearray(1000))
    near.post_write(mr, there)
    near.send_cq.wait()
    counters = near.context.port(1).counters
    assert counters["xmit_payload"] == 1000 < counters["xmit_bytes"]
    assert counters["xmit_data"] * 4 >= counters["xmit_payload"]
    assert far.context.port(1).counters["rcv_payload"] == 1000
    assert near.context.port(2).counters["xmit_bytes"] == 0
    assert near.context.counters["doorbells"] == 1
    with pytest.raises(BadArgument, match="no such port"):
        near.context.port(3)
