"""Queues that commands make (queues=devx): where they lie, what a device that refuses says, what is left of them."""

import errno
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import rdmakit
from rdmakit.device import Refused, connected_pair
from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.lifetime import typed_refusal
from rdmakit.device.qp_attributes import QPState
from rdmakit.errors import BadArgument, BadState, CompletionError, DeviceFault, NotAvailable, ObjectBusy
from rdmakit.layout.prm_commands import CREATE_OUT, CREATE_QP_IN, CommandOp
from rdmakit.verbs import _verbs
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_commands import change_state, create_cq
from rdmakit.verbs.devx_memory import HostQueueMemory, Placed, QueuePlacement
from rdmakit.verbs.ports import flow_label_sport

emulated = pytest.mark.skipif("SYSFS_PATH" not in os.environ, reason="the emulated device alone tells or takes it")


@pytest.fixture
def ends(devices, spelled):
    first, second = (spelled(device, "devx") for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        yield connected_pair(here, there, rq_wqes=8, cq_entries=16)


def copy(near, far, rng, nbytes=4096):
    source = near.pd.register(rng.integers(0, 256, nbytes, np.uint8))
    target = far.pd.register(np.full(nbytes, 0xA5, np.uint8), "local_write|remote_write")
    near.post_write(source, target.remote())
    near.send_cq.wait()
    assert np.array_equal(source.bytes, target.bytes)


def test_packets_are_addressed_to_the_peer(ends):
    """The Ethernet address is the kernel's answer for the peer's GID, from an address handle; the source port, too."""
    near, far = ends
    asked = near.query()
    if near.context.ib_port(1).link_layer != "Ethernet":
        pytest.skip("InfiniBand has LIDs")
    pd = near.context._provider._pds[near.pd.handle]
    mac = pd.resolve(gid_bytes(far.endpoint().gid), 1, asked["sgid_index"])
    assert asked["rmac"] == mac != bytes(6)
    assert asked["udp_source_port"] == near.udp_sport == flow_label_sport(0, near.qpn, far.qpn)
    assert asked["dgid"] == gid_bytes(far.endpoint().gid) and asked["dest_qp_num"] == far.qpn


@emulated
def test_the_emulated_device_takes_no_other_address(ends):
    near, far = ends
    near.modify("RESET")
    near.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    values = {
        "qp_state": 2, "path_mtu": 3, "dest_qp_num": far.qpn, "rq_psn": 0, "max_dest_rd_atomic": 1, "min_rnr_timer": 1,
        "dgid": gid_bytes(far.endpoint().gid), "sgid_index": near.context._provider._gid_index[1], "ah_port_num": 1,
    }  # fmt: skip
    made, _ = near.context._provider._made["qp", near.qpn]
    with pytest.raises(Refused, match="INIT2RTR_QP: status 0x3"):
        made.modify(change_state(near.qpn, QPState.INIT, values, mac=b"\x02" * 6, sport=0xC000))


# ---- where they lie
class Counted(HostQueueMemory):
    """Host memory that says what was asked of it."""

    def __init__(self, name):
        self.name, self.asked, self.regions = name, [], []

    def allocate(self, nbytes, label):
        self.asked.append((nbytes, label))
        self.regions.append(super().allocate(nbytes, label))
        return self.regions[-1]


def inside(array, region):
    return region.bytes.ctypes.data <= array.ctypes.data < region.bytes.ctypes.data + region.bytes.nbytes


def test_each_part_lies_where_it_was_asked_to(devices, spelled, rng):
    spelled(devices[0], "devx")
    rings, completions, records = (Counted(name) for name in ("rings here", "completions there", "records elsewhere"))
    placement = QueuePlacement(rings, completions, records)
    with open_devx(devices[0], placement) as here, open_devx(devices[1]) as there:
        assert "completions in completions there" in here.device.where
        near, far = connected_pair(here, there, rq_wqes=8, cq_entries=16)
        copy(near, far, rng)
        assert inside(near._queues.sq, rings.regions[0]) and inside(near._queues.rq, rings.regions[0])
        assert inside(near.send_cq._ring, completions.regions[0])
        assert any(inside(near._queues.dbrec, region) for region in records.regions)
        assert len(rings.asked) == 1 and len(records.asked) == 1 + len(completions.asked)
        assert "rings" in rings.asked[0][1] and "record" in records.asked[0][1]


class MemfdRegion:
    """What memory of a GPU looks like to a provider: pages of a descriptor, registered by it."""

    def __init__(self, nbytes):
        import mmap

        whole = -(-nbytes // 4096) * 4096
        self._fd = os.memfd_create("queues")
        os.ftruncate(self._fd, 4096 + whole)
        self.bytes = np.frombuffer(mmap.mmap(self._fd, whole, offset=4096), np.uint8)
        self.dmabuf = (self._fd, 4096)

    def write(self, offset, data):
        self.bytes[offset : offset + data.nbytes] = data

    def __del__(self):
        os.close(self._fd)


class MemfdMemory:
    name = "a descriptor's memory"

    def allocate(self, nbytes, label):
        return MemfdRegion(nbytes)


@emulated
@pytest.mark.parametrize("host_records", [False, True], ids=["all", "records in host memory"])
def test_queues_in_memory_of_a_descriptor(devices, rng, host_records):
    """umem_reg_ex with an offset: rings and completions come and go through another mapping of the same pages."""
    placement = QueuePlacement(MemfdMemory(), records=HostQueueMemory() if host_records else None)
    with open_devx(devices[0], placement) as here, open_devx(devices[1], placement) as there:
        near, far = connected_pair(here, there, rq_wqes=8, cq_entries=16)
        for _ in range(20):
            copy(near, far, rng)
        landing = far.pd.register(np.zeros(64, np.uint8))
        source = near.pd.register(np.arange(64, dtype=np.uint8))
        far.post_recv(landing[:])
        near.post_send(source[:])
        assert far.recv_cq.wait()[0].byte_len == 64 and landing.bytes.tolist() == list(range(64))


def test_a_collapsed_queue_polled_by_the_host(devices, spelled, rng):
    first, second = (spelled(device, "devx") for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        cq = here.create_cq(16, collapsed=True, overrun_ignore=True)
        near, far = here.alloc_pd().create_qp(cq), there.alloc_pd().create_qp(there.create_cq(16))
        near.connect(far)
        far.connect(near)
        source = near.pd.register(rng.integers(0, 256, 64, np.uint8))
        target = far.pd.register(np.zeros(64, np.uint8), "local_write|remote_write")
        for index in range(100):  # far over its sixteen entries
            near.post_write(source, target.remote(), wr_id=index)
            assert cq.wait()[0].wr_id == index
        assert (cq.view()["op_own"][1:] >> 4 == 0xF).all(), "one entry is used"
        assert near.device_handle()["cq"]["collapsed"] == 1


def test_a_queue_that_overruns_is_dead_and_says_so(devices, spelled, rng):
    first, second = (spelled(device, "devx") for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        near = here.alloc_pd().create_qp(here.create_cq(4))
        far = there.alloc_pd().create_qp(there.create_cq(4))
        near.connect(far)
        far.connect(near)
        source = near.pd.register(np.zeros(8, np.uint8))
        target = far.pd.register(np.zeros(8, np.uint8), "local_write|remote_write")
        for _ in range(6):
            near.post_write(source, target.remote())
        with pytest.raises(DeviceFault, match="overrun"):
            for _ in range(10000):
                near.send_cq.poll()
        assert ("cq_error", near.send_cq.cqn) in told(here), "and by an event"


def told(context, within_s=5.0):
    """Events that come before there is silence."""
    found, until = [], time.monotonic() + within_s
    while not found and time.monotonic() < until:
        found = [(event.name, event.number) for event in context.events()]
    return found


def test_a_queue_pair_whose_peer_overreaches_tells(ends, rng):
    """The responder's: a WRITE with a key that it has not given."""
    near, far = ends
    source = near.pd.register(rng.integers(0, 256, 64, np.uint8))
    near.post_write(source, (source.address, 0x123400))
    with pytest.raises(CompletionError, match="REM_ACCESS"):
        near.send_cq.wait()
    assert ("qp_access_error", far.qpn) in told(far.context)
    assert told(far.context, 0.1) == []


def test_armed_queues_tell_once_each_and_solicited_ones_alone(ends, rng):
    near, far = ends
    other = near.context.create_cq(16)
    source, landing = near.pd.register(rng.integers(0, 256, 64, np.uint8)), far.pd.register(np.zeros(640, np.uint8))
    for round_ in range(5):  # more than the two bits that count arms
        near.send_cq.arm()
        near.post_write(source, landing.slice(0, 64))
        near.send_cq.wait()
        assert told(near.context) == [("completion", near.send_cq.cqn)], round_
        near.post_write(source, landing.slice(0, 64))
        near.send_cq.wait()
        assert told(near.context, 0.05) == [], round_
    far.recv_cq.arm(solicited_only=True)
    for solicited in (False, True):
        far.post_recv(landing[:])
        near.post_send(source[:], solicited=solicited)
        near.send_cq.wait()
        far.recv_cq.wait()
        assert told(far.context, 5 if solicited else 0.1) == [("completion", far.recv_cq.cqn)] * solicited
    other.close()


# ---- what a device that refuses says
class TooLittle(HostQueueMemory):
    def allocate(self, nbytes, label):
        return super().allocate(nbytes // 2, label)


def test_a_refused_command_has_status_and_syndrome(devices, spelled):
    spelled(devices[0], "devx")
    context = _verbs.Context(devices[0], devx=True)
    command = CREATE_QP_IN.pack({"opcode": CommandOp.CREATE_QP, "wq_umem_id": 0xABCDEF, "wq_umem_valid": 1})
    verdict = r"CREATE_QP: status 0x\w+ BAD_\w+, syndrome 0x"
    with pytest.raises(BadArgument, match=verdict) as caught, typed_refusal("making a queue pair"):
        _verbs.DevxObject(context, command)
    facts = caught.value.facts
    assert facts["command"] == "CREATE_QP" and facts["status"].startswith("BAD_") and caught.value.remedy
    if "SYSFS_PATH" in os.environ:
        assert int(facts["syndrome"], 16) == errno.EINVAL, "there the errno stands for a line of the firmware"


def test_memory_that_is_too_little(devices, spelled):
    spelled(devices[0], "devx")
    with open_devx(devices[0], QueuePlacement(TooLittle())) as context:
        with pytest.raises(BadArgument, match="less than was asked") as caught:
            context.create_cq(1024)
        assert caught.value.value < 64 * 1024
        assert context.alloc_pd().register(np.zeros(8, np.uint8)).lkey, "the device is none the worse"


def test_changes_of_state_that_cannot_be(ends):
    near, _ = ends
    with pytest.raises(BadArgument, match="BAD_PARAM_ERR") as caught:
        near.udp_sport = 0x1234
    assert caught.value.facts["command"] == "RTS2RTS_QP"
    with pytest.raises(BadState, match="RTS to INIT"):
        near.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    with pytest.raises(BadArgument, match=r"RTS to RTS does not take rq_psn"):
        near.modify("RTS", rq_psn=1)
    near.modify("RTS", min_rnr_timer=9, qp_access_flags="local_write|remote_read")
    after = near.query()
    assert (after["min_rnr_timer"], after["qp_access_flags"]) == (9, 4)
    with pytest.raises(BadArgument, match="no command from RTS to SQD"):
        near.modify("SQD")
    near.modify("RESET")
    near.modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0)
    with pytest.raises(BadArgument, match="lacks path_mtu, dest_qp_num"):
        near.modify("RTR", dgid=near.endpoint().gid, rq_psn=0, max_dest_rd_atomic=1, min_rnr_timer=1)


@emulated
def test_a_peer_whose_address_does_not_resolve(devices):
    with rdmakit.open(f"{devices[0]}:queues=devx") as context:
        qp = context.alloc_pd().create_qp(context.create_cq(4))
        with pytest.raises(BadArgument, match="ibv_create_ah") as caught:
            qp.connect({"qpn": 77, "gid": "::ffff:10.99.98.97", "mtu": 1024})
        assert "route" in caught.value.remedy and qp.state.name == "INIT"


@pytest.mark.parametrize("option", [{"sq_sig_all": True}, {"out_of_order": True}])
def test_options_that_no_field_has(ends, option):
    near, _ = ends
    with pytest.raises(NotAvailable, match="has no field") as caught:
        near.pd.create_qp(near.context.create_cq(4), **option)
    assert "queues=mlx5" in caught.value.remedy


# ---- without DevX
def run(code, *arguments, **environment):
    return subprocess.run([sys.executable, "-c", code, *arguments], env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=120)  # fmt: skip


OPEN = (
    "import sys, rdmakit\n"
    "from rdmakit.errors import NotAvailable, BadArgument\n"
    "try: rdmakit.open(sys.argv[1] + ':queues=devx')\n"
    "except (NotAvailable, BadArgument) as error: print(type(error).__name__, error)\n"
    "print(rdmakit.open(sys.argv[1]).device.where)\n"
)


def test_without_libmlx5_the_reason_is_told(devices):
    done = run(OPEN, devices[0], RDMAKIT_LIBMLX5="/nowhere/libmlx5.so.1")
    assert done.returncode == 0, done.stderr
    assert "NotAvailable" in done.stdout and "mlx5dv_open_device" in done.stdout and "queues=mlx5" in done.stdout
    assert done.stdout.endswith("proxied queues\n")


@emulated
def test_firmware_that_takes_no_commands(devices):
    done = run(OPEN, devices[0], RDMAKIT_UVERBS_DEVX="off")
    assert done.returncode == 0, done.stderr
    assert "mlx5dv_open_device" in done.stdout and "UCTX_EN" in done.stdout
    assert done.stdout.endswith("mlx5 queues\n"), "the device's own queues do without"


# ---- what is left
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1), (1, 0, 4, 2, 3)])
def test_names_may_be_dropped_in_any_order(devices, spelled, order):
    spelled(devices[0], "devx")
    context = _verbs.Context(devices[0], devx=True)
    pd, uar = context.alloc_pd(), _verbs.Uar(context)
    placed = Placed(context, HostQueueMemory(), None, 1 << 14, "both")
    with rdmakit.open(f"{devices[0]}:queues=devx") as other:
        eqn = other._provider._eqn
    command = create_cq(4, 64, False, False, ring=placed.ring_umem, record=placed.record_umem,
                        record_offset=placed.record_offset, uar=uar.page_id, eqn=eqn)  # fmt: skip
    cq = _verbs.DevxObject(context, command, holds=(*placed.umems, uar))
    cqn = CREATE_OUT.get(cq.answer, "number")
    qp = _verbs.DevxObject(context, CREATE_QP_IN.pack({
        "opcode": CommandOp.CREATE_QP, "wq_umem_id": placed.ring_umem, "wq_umem_valid": 1, "qpc.pm_state": 3,
        "qpc.pd": pd.number, "qpc.uar_page": uar.page_id, "qpc.log_sq_size": 4, "qpc.cqn_snd": cqn, "qpc.cqn_rcv": cqn,
        "qpc.rq_type": 3, "qpc.dbr_umem_valid": 1, "qpc.dbr_umem_id": placed.record_umem,
        "qpc.dbr_addr": placed.record_offset,
    }), holds=(pd, cq, *placed.umems, uar))  # fmt: skip
    with pytest.raises(Refused) as refused:
        placed.umems[0].close()
    assert refused.value.code in (errno.EBUSY, errno.EREMOTEIO)
    with pytest.raises(Refused):
        cq.close()
    objects = [context, pd, uar, cq, qp]
    del context, pd, uar, cq, qp, placed
    for index in order:
        objects[index] = None
    again = _verbs.Context(devices[0], devx=True)
    again.alloc_pd().close()


def test_parents_in_use_are_not_closed(ends):
    near, _ = ends
    for parent in (near.pd, near.send_cq, near.context):
        with pytest.raises(ObjectBusy):
            parent.close()
    view, record = near.sq_view(), near.dbrec_view()
    near.close()
    near.send_cq.close()
    assert view.view(np.uint8).sum() >= 0 and record["snd"] == 0, "views outlive it"


LEAVE = """
import sys, numpy as np, rdmakit
from rdmakit.device import connected_pair
from rdmakit.errors import RdmakitError
here, there = (rdmakit.open(name + ":queues=devx") for name in sys.argv[2:])
near, far = connected_pair(here, there, rq_wqes=4)
kept = [near.pd.register(np.zeros(64, np.uint8)) for _ in range(3)]
for _ in range(20):
    here.create_cq(16, collapsed=True)
    near.pd.create_qp(here.create_cq(64))
try: near.udp_sport = 1
except RdmakitError: pass
how = sys.argv[1]
if how == "cycle":
    cycle = [near, far]; cycle.append(cycle); near.extra = cycle
    here = there = near = far = None
elif how == "blocks":
    with here, there: pass
elif how == "error": near.modify("ERR")
"""


@emulated
@pytest.mark.parametrize("how", ["open", "cycle", "blocks", "error"])
def test_nothing_is_left_whatever_a_program_leaves_open(devices, how):
    done = run(LEAVE, how, *devices, RDMAKIT_UVERBS_TRACE="1")
    said = [line for line in done.stderr.splitlines() if "attributes:" not in line and "RTS2RTS" not in line]
    assert done.returncode == 0 and done.stdout == "", done.stderr
    counted = [re.fullmatch(r"uverbs: closed with (\d+) DevX objects, (\d+) umems", line) for line in said]
    assert len(counted) == 2 and all(counted), said
    assert all(match.groups() == ("0", "0") for match in counted), said
