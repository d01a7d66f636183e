"""Queues that commands make (queues=devx): where they lie, whom they reach, what they tell."""

import os
import time

import numpy as np
import pytest

import rdmakit
from rdmakit.device import Refused, connected_pair
from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.qp_attributes import QPState
from rdmakit.errors import CompletionError, DeviceFault
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_commands import change_state
from rdmakit.verbs.devx_memory import HostQueueMemory, QueuePlacement
from rdmakit.verbs.ports import flow_label_sport

emulated = pytest.mark.skipif("SYSFS_PATH" not in os.environ, reason="the emulated device alone tells or takes it")


def copy(near, far, rng, nbytes=4096):
    source = near.pd.register(rng.integers(0, 256, nbytes, np.uint8))
    target = far.pd.register(np.full(nbytes, 0xA5, np.uint8), "local_write|remote_write")
    near.post_write(source, target.remote())
    near.send_cq.wait()
    assert np.array_equal(source.bytes, target.bytes)


def test_packets_are_addressed_to_the_peer(devx_ends):
    """The Ethernet address is the kernel's answer for the peer's GID, from an address handle; the source port, too."""
    near, far = devx_ends
    asked = near.query()
    if near.context.ib_port(1).link_layer != "Ethernet":
        pytest.skip("InfiniBand has LIDs")
    pd = near.context._provider._pds[near.pd.handle]
    mac = pd.resolve(gid_bytes(far.endpoint().gid), 1, asked["sgid_index"])
    assert asked["rmac"] == mac != bytes(6)
    assert asked["udp_source_port"] == near.udp_sport == flow_label_sport(0, near.qpn, far.qpn)
    assert asked["dgid"] == gid_bytes(far.endpoint().gid) and asked["dest_qp_num"] == far.qpn


@emulated
def test_the_emulated_device_takes_no_other_address(devx_ends):
    near, far = devx_ends
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


def test_a_queue_pair_whose_peer_overreaches_tells(devx_ends, rng):
    """The responder's: a WRITE with a key that it has not given."""
    near, far = devx_ends
    source = near.pd.register(rng.integers(0, 256, 64, np.uint8))
    near.post_write(source, (source.address, 0x123400))
    with pytest.raises(CompletionError, match="REM_ACCESS"):
        near.send_cq.wait()
    assert ("qp_access_error", far.qpn) in told(far.context)
    assert told(far.context, 0.1) == []


def test_armed_queues_tell_once_each_and_solicited_ones_alone(devx_ends, rng):
    near, far = devx_ends
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
