"""Queues of devices as kernels of GPUs reach them: what is registered, where handles point, who rings when it fails.

CUDA is a stand-in that enforces its rules (unit/cuda_rig.py), and kernels run on the CPU runner, to which the handles'
addresses mean the same. tests/gpu/test_device_queues.py is this on a GPU.
"""

import gc

import numpy as np
import pytest
from cuda_rig import PAGE, NumPyArena, StandIn

import rdmakit
import rdmakit.connect
from rdmakit.device import CQ_HANDLE, QP_HANDLE, REPORT, SQ_STATE, connected_pair
from rdmakit.emu.outside import OutsideWorld
from rdmakit.ep import device_gpus
from rdmakit.ep.gpu_queues import open_for_gpus
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.gpu import device_queues as reaching
from rdmakit.gpu.host_pages import HostPages
from rdmakit.signal import SequenceLock, handles
from rdmakit.signal.abi import LOCK_TRANSFER

WORDS = 3000  # many times a ring of 64 blocks, with a CQE for each


class Gpu:
    """What stands for one: pages as CUDA has them, and devices that it reaches."""

    def __init__(self, monkeypatch, **options):
        self.cuda = StandIn(**options)
        self.pages = HostPages(self.cuda)
        monkeypatch.setattr(reaching, "Arena", NumPyArena)
        monkeypatch.setattr(reaching, "host_pages", lambda: self.pages)

    def reached(self, address, nbytes):
        return self.cuda.covers(address - self.cuda.offset, nbytes)


@pytest.fixture
def gpu(monkeypatch):
    return lambda **options: Gpu(monkeypatch, **options)


def own(context):
    return context.device.where.startswith(("mlx5", "devx"))


def places(handle):
    """Where the parts of a QpHandle lie, and how long they are: of libmlx5, then ours."""
    at, cq = handle.array[0], handle.array[0]["cq"]
    theirs = {
        "sq": (at["sq"], 64 << int(at["log_sq"])), "dbrec": (at["dbrec"], 4), "doorbell": (at["doorbell"], 8),
        "entries": (cq["entries"], 1 << int(cq["log_entries"] + cq["log_stride"])), "cq dbrec": (cq["dbrec"], 8),
    }  # fmt: skip
    ours = {"state": (at["state"], SQ_STATE.itemsize), "report": (at["watch"]["report"], REPORT.itemsize)}
    return theirs, ours


@pytest.mark.parametrize("offset", [0, 1 << 45])
def test_handles_have_addresses_that_are_mapped(contexts, gpu, offset):
    there = gpu(offset=offset)
    ways = [reaching.reach(context) for context in contexts]
    near, _ = connected_pair(*contexts)
    handle = near.device_handle()
    theirs, ours = places(handle)
    assert QP_HANDLE.itemsize == handle.array.nbytes and handle["cq"].dtype == CQ_HANDLE
    host = {"sq": near.sq_view(), "dbrec": near.dbrec_view()[:1], "entries": near.send_cq.view(),
            "cq dbrec": near.send_cq.dbrec_view()}  # fmt: skip
    for name, (address, nbytes) in theirs.items():
        if own(contexts[0]):
            assert there.reached(int(address), nbytes), name
        if name in host:
            shift = 4 * (name == "dbrec") + offset * own(contexts[0])
            assert int(address) == host[name].ctypes.data + shift, name
    for name, (address, nbytes) in ours.items():
        assert not there.cuda.covers(int(address) - offset, nbytes), f"{name} is memory of CUDA's own"
    assert ways[0].registers == ("memory" if own(contexts[0]) else "")
    assert not there.cuda.io


def test_queues_share_pages_and_the_last_one_gives_them_back(contexts, gpu):
    if not own(contexts[0]):
        pytest.skip("the proxy's queues are memory of CUDA's own")
    there = gpu()
    for context in contexts:
        reaching.reach(context)
    pairs = [connected_pair(*contexts) for _ in range(8)]
    made = [pair[0].device_handle() for pair in pairs]
    records = {int(handle["dbrec"]) // PAGE for handle in made}
    of_libmlx5 = contexts[0].device.where.startswith("mlx5")  # whose records lie together; queues by command have pages
    assert len(records) < len(made) if of_libmlx5 else len(records) == len(made)
    assert there.cuda.calls == len(there.cuda.mapped)
    kept = made.pop()
    pairs.pop()
    before = there.cuda.calls
    assert kept.qp.device_handle()["sq"] == kept["sq"] and there.cuda.calls == before
    theirs, _ = places(kept)
    del made, pairs
    gc.collect()
    assert all(there.cuda.covers(int(address), nbytes) for address, nbytes in theirs.values())
    held = len(there.cuda.mapped)
    del kept
    gc.collect()
    assert len(there.cuda.mapped) < held
    for context in contexts:
        with context:
            pass
    gc.collect()
    assert not there.cuda.mapped, "registers go before the device does"


def put(contexts, seed):
    """Words put by a kernel that nobody helps: of the proxy, its thread works."""
    world = OutsideWorld(seed=seed, patience_s=30)
    near, far = connected_pair(*contexts, sq_wqebbs=64)
    source, sink = world.array(WORDS, np.uint64), world.array(WORDS, np.uint64, 0xDEAD)
    source[:] = np.random.default_rng(seed).integers(0, 1 << 63, WORDS, dtype=np.uint64)
    of, to = near.pd.register(source), far.pd.register(sink)
    handle = near.device_handle()
    world.stock_kernel("put_words")(3, 128, (handle.array, to.remote(), of, WORDS, 7))
    world.run()
    handle.report.raise_for_status()
    assert np.array_equal(source, sink) and near.completed == WORDS


def test_kernels_put_by_such_handles(contexts, gpu, seed):
    gpu()
    for context in contexts:
        reaching.reach(context)
    put(contexts, seed)


@pytest.mark.parametrize("way", ["amo", "imm", "eager", "write", "cqe"])
def test_every_strategy_by_such_handles(contexts, gpu, seed, rng, way):
    gpu()
    for context in contexts:
        reaching.reach(context)
    options = {"crc": True} if way == "eager" else {}
    world = OutsideWorld(2, seed=seed, patience_s=30)
    lock = SequenceLock(contexts[0].alloc_pd(), contexts[1].alloc_pd(), strategy=way, slots=4, max_payload=900,
                        **options)  # fmt: skip
    count, stride = 30, 912
    lengths = rng.integers(0, 901, count).astype(np.uint32)
    source, out = world.array((count, stride)), world.array((count, stride), fill=0xA5)
    source[...] = rng.integers(0, 256, source.shape, dtype=np.uint8)
    transfers, got = world.array(count, LOCK_TRANSFER), world.array(count, np.uint32, 0xDEAD)
    transfers["offset"], transfers["length"] = np.arange(count) * stride, lengths
    first = world.array(1, np.uint64)
    senders, receivers = handles([lock], world.array)
    receive = world.stock_kernel("lock_receive")
    receive(1, 32, (receivers, 1, first, count, out, stride, got, None), rank=1)
    world.stock_kernel("lock_send")(1, 32, (senders, 1, first, count, transfers, source), rank=0)
    world.run()
    lock.raise_for_status()
    assert np.array_equal(got, lengths)
    for i, n in enumerate(lengths):
        assert np.array_equal(out[i, :n], source[i, :n]) and (out[i, n:] == 0xA5).all()


def test_a_doorbell_that_cuda_does_not_map_is_told_and_the_proxy_rings(contexts, gpu, seed, devices):
    refusing = {"no_io": "CUDA_ERROR_NOT_PERMITTED", "no_memory": "CUDA_ERROR_INVALID_VALUE"}
    there = gpu()
    way = reaching.reach(contexts[0])
    register = None

    class NoRegisters(HostPages):
        """Memory is mapped, registers are not, as without PeerMappingOverride."""

        def hold(self, address, nbytes, *, io=False):
            if address == register:
                self.refused = {**getattr(self, "refused", {}), io: 1}
                raise NotAvailable("cuMemHostRegister_v2 was refused", value=refusing["no_io" if io else "no_memory"],
                                   rule="-", remedy="-")  # fmt: skip
            return super().hold(address, nbytes, io=io)

    if not own(contexts[0]):
        context, said = open_for_gpus(f"{devices[0]}:queues=proxied")
        assert "asked for" in said
        context.close()
        pytest.skip("what follows is of the device's own queues")
    near, _ = connected_pair(*contexts)
    register = near._queues.doorbell // PAGE * PAGE
    way._pages = NoRegisters(there.cuda)
    with pytest.raises(NotAvailable, match="does not map the doorbell") as caught:
        near.device_handle()
    for word in (*refusing.values(), "PeerMappingOverride"):
        assert word in str(caught.value)
    assert way._pages.refused == {True: 1, False: 1}

    class NoRegistersAtAll(NoRegisters):
        def hold(self, address, nbytes, *, io=False):
            nonlocal register
            register = address if nbytes == PAGE else None
            return super().hold(address, nbytes, io=io)

    there.pages = NoRegistersAtAll(there.cuda)
    opened, said = zip(*(open_for_gpus(name) for name in devices), strict=True)
    assert all("a proxy on the CPU posts" in text and "CUDA_ERROR_NOT_PERMITTED" in text for text in said)
    assert all(context.device.where == "proxied queues" for context in opened)
    put(opened, seed)


def test_heaps_lie_in_the_hosts_memory_where_a_nic_registers_none_of_a_gpus(devices, monkeypatch):
    """Each way is tried on the device itself, and each refusal is told."""
    memory = np.zeros(1 << 17, np.uint8)
    page = int(memory.ctypes.data) + (1 << 16) & ~0xFFFF
    reserved = 0x1000  # never mapped (vm.mmap_min_addr): to the kernel as a GPU's memory without its driver's help

    class Page:
        address, nbytes = reserved, 1 << 16

    def no_dmabuf(address, nbytes):
        raise NotAvailable("the driver exports no dma-buf", value=0, rule="-", remedy="-")

    monkeypatch.setattr(device_gpus, "GpuMemory", Page)
    monkeypatch.setattr(device_gpus, "dmabuf_of", no_dmabuf)
    paths = rdmakit.connect.open_paths(list(dict.fromkeys(devices)))
    with pytest.raises(NotAvailable, match="peermem") as caught:
        paths[0].pd.register_gpu(reserved, 4096)
    assert "nvidia-peermem" in caught.value.remedy and "dmabuf=" in caught.value.remedy
    way = device_gpus.heap_way(paths)
    assert way.kind == "host" and "dma-buf: the driver exports no dma-buf" in way.why and "EFAULT" in way.why
    assert "page-locked memory of the host" in str(way)
    Page.address = page
    way = device_gpus.heap_way(paths)
    assert way.kind == "peermem" and "exports no dma-buf" in way.why
    registered = device_gpus._known_by(way, paths)(page, 4096)
    assert registered.lkey(paths[0]) and registered.told(paths)["rkeys"]
    (mr,) = {mr for mr in registered.mrs.values() if mr.pd is paths[0].pd}
    assert mr.remote().address == page and "peermem" in repr(mr)
    registered.close()
    assert mr.closed


def test_only_real_devices_are_reached():
    with pytest.raises(BadArgument, match="emulated world"):
        reaching.reach(rdmakit.open("emu"))
