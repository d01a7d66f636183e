"""Work requests by the array: posted in one call, completed into an array; objects of the low layer."""

import ctypes
import errno
import mmap
import os
import time

import numpy as np
import pytest

from rdmakit.device import Refused
from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.qp_attributes import attribute_mask
from rdmakit.errors import BadArgument, BadState, UnknownDevice
from rdmakit.verbs import RECV_WR, SEND_WR, WC, _verbs
from rdmakit.verbs.sysfs import choose_gid, gid_table

WRITE, SEND, SIGNALLED = 0, 2, 2
RIGHTS = 0b1111


class End:
    """A queue pair with its CQ, and memory of random bytes."""

    def __init__(self, device, rng):
        self.context = _verbs.Context(device)
        ethernet = self.context.query_port(1)["link_layer"] == 2
        self.gid = choose_gid(gid_table(device, 1), ethernet)
        self.pd, self.cq = self.context.alloc_pd(), self.context.create_cq(1024)
        self.qp = self.pd.create_qp(self.cq, max_send_wr=512, max_recv_wr=128, max_recv_sge=1)
        self.memory = rng.integers(0, 256, 1 << 16, np.uint8)
        self.mr = self.pd.reg_mr(self.memory.ctypes.data, self.memory.nbytes, RIGHTS)

    def connect(self, peer):
        init = {"pkey_index": 0, "port_num": 1, "qp_access_flags": RIGHTS}
        rtr = {
            "path_mtu": 3, "dest_qp_num": peer.qp.qpn, "rq_psn": 0, "max_dest_rd_atomic": 1, "min_rnr_timer": 12,
            "dgid": gid_bytes(peer.gid.gid), "sgid_index": self.gid.index, "ah_port_num": 1,
        }  # fmt: skip
        rts = {"timeout": 14, "retry_cnt": 7, "rnr_retry": 7, "sq_psn": 0, "max_rd_atomic": 1}
        for state, values in ((1, init), (2, rtr), (3, rts)):
            self.qp.modify({**values, "qp_state": state}, attribute_mask(values))

    def poll(self, count):
        found, got, deadline = np.zeros(count, WC), 0, time.monotonic() + 10
        while got < count and time.monotonic() < deadline:
            got += self.cq.poll(found[got:])
            time.sleep(0)
        assert got == count, f"{got} of {count} completions"
        return found


@pytest.fixture
def ends(devices, rng):
    near, far = End(devices[0], rng), End(devices[1], rng)
    near.connect(far)
    far.connect(near)
    return near, far


@pytest.mark.parametrize("count", [1, 64, 200])
def test_one_call_posts_all_rows_in_order(ends, count):
    near, far = ends
    far.memory[:] = 0xA5
    requests = np.zeros(count, SEND_WR)
    offsets = 64 * np.arange(count)
    requests["wr_id"], requests["flags"], requests["opcode"] = 1000 + np.arange(count), SIGNALLED, WRITE
    requests["address"], requests["length"], requests["lkey"] = near.mr.address + offsets, 64, near.mr.lkey
    requests["remote_address"], requests["rkey"] = far.mr.address + offsets, far.mr.rkey
    near.qp.post_send(requests)
    done = near.poll(count)
    assert (done["status"] == 0).all() and np.array_equal(done["wr_id"], requests["wr_id"])
    assert np.array_equal(far.memory[: 64 * count], near.memory[: 64 * count])
    assert (far.memory[64 * count :] == 0xA5).all()


def test_receives_by_the_array(ends):
    near, far = ends
    receives = np.zeros(8, RECV_WR)
    receives["wr_id"], receives["address"] = np.arange(8), far.mr.address + 128 * np.arange(8)
    receives["length"], receives["lkey"] = 128, far.mr.lkey
    far.qp.post_recv(receives)
    sends = np.zeros(8, SEND_WR)
    sends["opcode"], sends["flags"], sends["lkey"] = SEND, SIGNALLED, near.mr.lkey
    sends["address"], sends["length"] = near.mr.address + 100 * np.arange(8), 1 + np.arange(8)
    near.qp.post_send(sends)
    got = far.poll(8)
    assert got["wr_id"].tolist() == list(range(8)) and got["byte_len"].tolist() == list(range(1, 9))
    assert (near.poll(8)["status"] == 0).all()
    for i in range(8):
        assert np.array_equal(far.memory[128 * i : 128 * i + i + 1], near.memory[100 * i : 100 * i + i + 1])


def test_a_full_queue_says_how_many_it_took(ends):
    near, far = ends
    requests = np.zeros(5000, SEND_WR)
    requests["address"], requests["length"], requests["lkey"] = near.mr.address, 8, near.mr.lkey
    requests["remote_address"], requests["rkey"] = far.mr.address, far.mr.rkey
    with pytest.raises(Refused, match=r"ibv_post_send.*taken \d+") as caught:
        near.qp.post_send(requests)
    assert "poll its CQ" in caught.value.remedy


def test_rows_of_another_shape_are_refused(ends):
    near, _ = ends
    with pytest.raises(BadArgument, match="multiple of 64"):
        near.qp.post_send(np.zeros(63, np.uint8))
    with pytest.raises(BadArgument, match="multiple of 48"):
        near.cq.poll(np.zeros(47, np.uint8))


def test_attributes_that_do_not_fit_are_refused_by_name(ends):
    near, _ = ends
    for name, value in (("timeout", 300), ("rq_psn", -1), ("retry_cnt", "many"), ("dgid", 7)):
        with pytest.raises(BadArgument, match=f"{name}={value!r}|not a GID"):
            near.qp.modify({name: value}, 1)


def test_memory_that_is_not_there_cannot_be_registered(devices):
    pd = _verbs.Context(devices[0]).alloc_pd()
    with mmap.mmap(-1, 1 << 20) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))  # the temporary is gone at once
    with pytest.raises(Refused, match="ibv_reg_mr") as caught:
        pd.reg_mr(address, 1 << 20, 1)
    assert caught.value.code in (errno.EFAULT, errno.ENOMEM) and "memory" in caught.value.remedy


def test_a_region_of_a_descriptor_has_its_bytes_at_addresses_of_our_choice(ends, rng):
    """ibv_reg_dmabuf_mr: packets name our address, bytes go to the descriptor's pages behind the offset."""
    near, far = ends
    offset, nbytes, iova = 2 * 4096 + 128, 5000, (1 << 45) + 128
    fd = os.memfd_create("what a GPU exports")
    try:
        os.ftruncate(fd, 1 << 16)
        with mmap.mmap(fd, 1 << 16) as pages:
            pages[:] = b"\xa5" * (1 << 16)
            try:
                region = far.pd.reg_dmabuf_mr(offset, nbytes, iova, fd, RIGHTS)
            except Refused as refused:
                assert refused.code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EBADF), refused
                pytest.skip(f"only a real dma-buf will do here: {refused}")
            for past, length in ((1 << 16, 8), (offset, 1 << 16), (offset, 0)):
                with pytest.raises(Refused, match="ibv_reg_dmabuf_mr") as caught:
                    far.pd.reg_dmabuf_mr(past, length, iova, fd, RIGHTS)
                assert caught.value.code == errno.EINVAL and "dma-buf" in caught.value.remedy
            requests = np.zeros(2, SEND_WR)
            requests["wr_id"], requests["flags"], requests["opcode"] = (7, 8), SIGNALLED, (WRITE, 4)  # and a READ
            requests["address"], requests["lkey"] = near.mr.address + np.array([0, 8192]), near.mr.lkey
            requests["length"], requests["remote_address"], requests["rkey"] = 4000, iova + 1000, region.rkey
            near.qp.post_send(requests)
            assert (near.poll(2)["status"] == 0).all()
            expected = np.full(1 << 16, 0xA5, np.uint8)
            expected[offset + 1000 :][:4000] = near.memory[:4000]
            assert np.array_equal(np.frombuffer(pages[:], np.uint8), expected)
            assert np.array_equal(near.memory[8192:][:4000], near.memory[:4000])
            requests["remote_address"] = iova + 1001  # a byte too far
            near.qp.post_send(requests[:1])
            assert near.poll(1)["status"][0] != 0
            region.close()
    finally:
        os.close(fd)


def test_an_unknown_device_names_those_that_are_there(devices):
    with pytest.raises(UnknownDevice, match=devices[0]):
        _verbs.Context("no_such_device")


def test_a_child_of_fork_is_told(ends):
    near, _ = ends
    child = os.fork()
    if child == 0:
        try:
            near.qp.query()
        except BadState as error:
            os._exit(0 if "fork" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert near.qp.query()["qp_state"] == 3  # the parent's own lives on
