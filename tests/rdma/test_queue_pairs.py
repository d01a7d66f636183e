"""The public objects on real devices: what emulated ones do, these do as well."""

import subprocess
import sys
import time

import numpy as np
import pytest

import rdmakit
from rdmakit.device import connected_pair
from rdmakit.emu.outside import OutsideWorld
from rdmakit.errors import BadArgument, BadState, CompletionError, ObjectBusy


@pytest.fixture
def ends(contexts):
    return connected_pair(*contexts, rq_wqes=32, cq_entries=64)


def poisoned(qp, nbytes, access="local_write|remote_write|remote_read|remote_atomic"):
    return qp.pd.register(np.full(nbytes, 0xA5, np.uint8), access)


def random_bytes(qp, rng, nbytes):
    return qp.pd.register(rng.integers(0, 256, nbytes, np.uint8))


@pytest.mark.parametrize("nbytes", [1, 4096, 100_003])
def test_a_write_and_a_read_carry_every_byte(ends, rng, nbytes):
    near, far = ends
    source, target, back = random_bytes(near, rng, nbytes), poisoned(far, nbytes), poisoned(near, nbytes)
    near.post_write(source, target.remote(), wr_id="out")
    (done,) = near.send_cq.wait()
    assert (done.wr_id, done.opcode) == ("out", "RDMA_WRITE")
    assert np.array_equal(target.bytes, source.bytes)
    near.post_read(back, target.remote())
    assert near.send_cq.wait()[0].byte_len == nbytes
    assert np.array_equal(back.bytes, source.bytes)


def test_inline_bytes_travel_in_the_wqe(ends):
    near, far = ends
    target = poisoned(far, 28)
    near.post_write(bytes(range(28)), target.remote())
    near.send_cq.wait()
    assert target.bytes.tolist() == list(range(28))


def test_several_segments_are_gathered(ends, rng):
    near, far = ends
    source, target = random_bytes(near, rng, 300), poisoned(far, 150)
    near.post_write([source[0:100], source[250:300]], target.remote())
    near.send_cq.wait()
    assert np.array_equal(target.bytes, np.r_[source.bytes[:100], source.bytes[250:]])


def test_atomics_return_the_old_value(ends, rng):
    near, far = ends
    start, add, swap = (int(rng.integers(1, 1 << 62)) for _ in range(3))
    word = far.pd.register(np.full(1, start, np.uint64))
    old = near.pd.register(np.full(1, 0xA5A5A5A5, np.uint64))
    near.post_fetch_add(old, word.remote(), add)
    near.send_cq.wait()
    assert (int(old.buffer[0]), int(word.buffer[0])) == (start, (start + add) % 2**64)
    near.post_cmp_swap(old, word.remote(), (start + add) % 2**64, swap)
    near.send_cq.wait()
    assert (int(old.buffer[0]), int(word.buffer[0])) == ((start + add) % 2**64, swap)


def test_sends_and_immediates_meet_receives_in_order(ends, rng):
    near, far = ends
    source, landing = random_bytes(near, rng, 256), poisoned(far, 256)
    for i in range(4):
        far.post_recv(landing[64 * i : 64 * i + 64], wr_id=i)
    near.post_send(source[0:64], signalled=False)
    near.post_send_imm(source[64:128], 0xDEADBEEF, signalled=False)
    near.post_write_imm(source[128:192], landing.slice(128, 64), 7)
    got = [*far.recv_cq.wait(3)]
    assert [c.wr_id for c in got] == [0, 1, 2] and [c.imm for c in got] == [None, 0xDEADBEEF, 7]
    assert [c.opcode for c in got] == ["RECV", "RECV_IMM", "RECV_RDMA_WITH_IMM"]
    assert np.array_equal(landing.bytes[:192], source.bytes[:192]) and (landing.bytes[192:] == 0xA5).all()


def test_a_ring_turns_many_times(ends, rng):
    near, far = ends
    source, target = random_bytes(near, rng, 64 * 64), poisoned(far, 64 * 64)
    for lap in range(40):
        with near.batch():
            for i in range(32):
                at = slice(64 * ((lap + i) % 64), 64 * ((lap + i) % 64) + 64)
                near.post_write(source[at], target.slice(at.start, 64), signalled=i == 31, wr_id=lap)
        assert near.send_cq.wait()[0].wr_id == lap
    assert near.posted == near.completed == 40 * 32
    assert np.array_equal(target.bytes, source.bytes)


ADD = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL add(QpHandle qp, RemoteMemory word, u32 times) {
    for (u32 i = 0; i < times; ++i) signal(qp, word, 1);
    quiet(qp);
}
"""


def test_a_kernel_goes_round_its_ring_and_its_completion_queue(contexts):
    """As many CQEs as WQEs, and nobody polls but the kernel when its ring is full."""
    world = OutsideWorld(patience_s=20)
    for context in contexts:
        world.let_work(context)
    near, far = connected_pair(*contexts)
    word = far.pd.register(world.array(1, np.uint64))
    handle = near.device_handle()
    world.compile(ADD, name="add.cu").get_function("add")(1, 32, [handle, word.remote(), 1000])
    world.run()
    assert int(word.buffer[0]) == 1000


def test_a_write_outside_the_region_fails_and_says_why(ends, rng):
    near, far = ends
    source, target = random_bytes(near, rng, 64), poisoned(far, 64)
    near.post_write(source, (target.address + 4096, target.rkey))
    with pytest.raises(CompletionError) as caught:
        near.send_cq.wait()
    assert caught.value.wc_status == "REM_ACCESS_ERR" and caught.value.remedy
    assert near.state.name == "ERR" and (target.bytes == 0xA5).all()
    near.post_write(source, target.remote())
    (flushed,) = near.send_cq.wait(check=False)
    assert flushed.status.name == "WR_FLUSH_ERR"


def test_an_armed_cq_tells_once(ends, rng):
    near, far = ends
    source, target = random_bytes(near, rng, 64), poisoned(far, 64)
    near.send_cq.arm()
    near.post_write(source, target.remote())
    near.send_cq.wait()
    deadline, events = time.monotonic() + 5, []
    while not events and time.monotonic() < deadline:
        events = near.context.events()
    assert [(event.name, event.number) for event in events] == [("completion", near.send_cq.cqn)]
    near.post_write(source, target.remote())
    near.send_cq.wait()
    assert near.context.events() == []


def events_of(context, count):
    """The next asynchronous events, which may take their time: (name, number)."""
    found, deadline = [], time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        found += [(event.name, event.number) for event in context.events()]
        time.sleep(0.01)
    return found


def test_a_refused_request_is_an_event_at_the_one_who_refuses(ends, mlx5):
    near, far = ends
    if far.context.device.name not in mlx5:
        pytest.skip("soft-RoCE tells the requester alone")
    target = far.pd.register(np.zeros(64, np.uint8), "local_write|remote_read")
    source = near.pd.register(np.zeros(64, np.uint8))
    near.post_write(source, target.remote())
    with pytest.raises(CompletionError, match="REMOTE_ACCESS"):
        near.send_cq.wait()
    assert events_of(far.context, 1) == [("qp_access_error", far.qpn)] and near.context.events() == []


def test_an_overrun_cq_is_an_event_with_our_number_of_it(devices, mlx5):
    """Of the device's own queues: of others the proxy and test_devx_queues tell."""
    if devices[0] not in mlx5:
        pytest.skip("of an mlx5 device's own queues")
    with rdmakit.open(devices[0]) as here, rdmakit.open(devices[1]) as there:
        small = here.create_cq(4)
        near, far = here.alloc_pd().create_qp(small, sq_wqebbs=64), there.alloc_pd().create_qp(there.create_cq(64))
        near.connect(far)
        far.connect(near)
        with near.batch():
            for _ in range(20):
                near.post_nop()
        assert ("cq_error", small.cqn) in events_of(here, 2)


def test_reset_and_connect_again(ends, rng):
    near, far = ends
    source, target = random_bytes(near, rng, 64), poisoned(far, 64)
    for _ in range(3):
        near.modify("RESET")
        far.modify("RESET")
        near.connect(far.endpoint())
        far.connect(near.endpoint())
        target.bytes[:] = 0xA5
        near.post_write(source, target.remote())
        near.send_cq.wait()
        assert np.array_equal(target.bytes, source.bytes)


def test_attributes_come_back(ends):
    near, far = ends
    attributes = near.query()
    assert (attributes["dest_qp_num"], attributes["timeout"], attributes["retry_cnt"]) == (far.qpn, 14, 7)
    assert near.endpoint().gid == near.context.ib_port(1).gid
    if near.context.ib_port(1).link_layer == "Ethernet":
        assert 0xC000 <= near.udp_sport <= 0xFFFF


def test_the_way_to_the_peer_is_as_it_was_asked_for(contexts, rng):
    """Traffic class (DSCP) and flow label arrive at the device, and bytes at the peer.

    Of an Ethernet port kernels take the hop limit from the route, and do not tell the service level.
    """
    asked = {"traffic_class": 4 * int(rng.integers(1, 64)), "flow_label": int(rng.integers(1, 1 << 20))}
    taken = {"hop_limit": int(rng.integers(2, 256)), "sl": int(rng.integers(1, 8))}
    near, far = connected_pair(*contexts)
    if near.context.ib_port(1).link_layer != "Ethernet":
        pytest.skip("an InfiniBand port has no global route unless asked for")
    for qp, peer in ((near, far), (far, near)):
        qp.modify("RESET").connect(peer, **asked, **taken)
    answered = near.query()
    assert {name: answered[name] for name in asked} == asked
    source, target = near.pd.register(rng.integers(0, 256, 500, np.uint8)), far.pd.register(np.zeros(500, np.uint8))
    near.post_write(source, target.remote())
    near.send_cq.wait()
    assert np.array_equal(source.bytes, target.bytes)


@pytest.mark.parametrize("kind", ["own", "devx", "proxied"])
def test_a_device_may_give_its_queue_pairs_a_traffic_class(devices, spelled, kind):
    names = [spelled(name, kind) for name in devices]
    with_class = [f"{name}{',' if ':' in name else ':'}traffic_class=104" for name in names]
    with rdmakit.open(with_class[0]) as here, rdmakit.open(with_class[1]) as there:
        near, far = connected_pair(here, there)
        assert near.query()["traffic_class"] == far.query()["traffic_class"] == 104
        near.modify("RESET").connect(far, traffic_class=32)
        assert near.query()["traffic_class"] == 32
    with pytest.raises(BadArgument, match="traffic_class=256"):
        rdmakit.open(f"{devices[0]}:traffic_class=256")


def test_what_cannot_be_is_refused_by_name(contexts):
    here, _ = contexts
    pd, cq = here.alloc_pd(), here.create_cq(16)
    qp = pd.create_qp(cq)
    with pytest.raises(BadState, match="RESET to RTS"):
        qp.modify("RTS", sq_psn=0, timeout=14, retry_cnt=7, rnr_retry=7, max_rd_atomic=1)
    with pytest.raises(BadArgument, match="port"):
        qp.modify("INIT", pkey_index=0, port_num=99, qp_access_flags=0)
    for name, value in (("traffic_class", 256), ("sl", -1), ("timeout", 300), ("flow_label", 1 << 20), ("rnr_retry", 8),
                        ("max_rd_atomic", "many"), ("rq_psn", 1 << 24)):  # fmt: skip
        with pytest.raises(BadArgument, match=f"value {name}={value!r}"):
            qp.connect(qp.endpoint(), **{name: value})
        qp.modify("RESET")
    with pytest.raises(BadArgument, match="remote write"):
        pd.register(np.zeros(8, np.uint8), "remote_write")
    with pytest.raises(ObjectBusy, match=r"QP|MR"):
        pd.close()
    with pytest.raises(ObjectBusy, match="QP"):
        cq.close()
    with pytest.raises(BadState, match="ibv_post_send needs RTS"):
        qp.post_nop()
    for option in ({"max_recv_sge": -1, "rq_wqes": 4}, {"max_inline": -1}, {"max_inline": 1 << 16}):
        with pytest.raises(BadArgument, match="max_"):
            pd.create_qp(cq, **option)
    qp.close()
    with pytest.raises(BadState, match="closed"):
        qp.query()
    assert qp.sq_view().shape[0] >= 128  # views outlive it


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_names_may_be_dropped_in_any_order(devices, order):
    import rdmakit.verbs._verbs as raw

    context = raw.Context(devices[0])
    pd, cq = context.alloc_pd(), context.create_cq(16)
    objects = [context, pd, cq, pd.create_qp(cq)]
    del context, pd, cq
    for index in order:
        objects[index] = None
    again = raw.Context(devices[0])
    again.alloc_pd().close()


def test_an_interpreter_ends_quietly_with_everything_open(devices):
    code = (
        "import sys, numpy as np, rdmakit\n"
        "from rdmakit.device import connected_pair\n"
        "here, there = (rdmakit.open(name) for name in sys.argv[1:])\n"
        "near, far = connected_pair(here, there)\n"
        "kept = [near.pd.register(np.zeros(64, np.uint8)) for _ in range(3)]\n"
        "cycle = [near, far]; cycle.append(cycle); near.extra = cycle\n"
        "here = there = near = far = None\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *devices], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("blocks", [4, 64, 256, 1024])
def test_a_send_ring_is_as_long_as_asked_for(contexts, blocks):
    """Who sizes a CQ by it must not see it overrun: libmlx5 makes rings several times as long of its own accord."""
    context = contexts[0]
    pd = context.alloc_pd()
    for _ in range(2):
        qp = pd.create_qp(context.create_cq(blocks), sq_wqebbs=blocks)
        assert len(qp.sq_view()) == blocks
    inline = pd.create_qp(context.create_cq(blocks), sq_wqebbs=blocks, max_inline=200)
    assert len(inline.sq_view()) in (blocks, 8)
