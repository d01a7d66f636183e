"""Kernels of a GPU on queue pairs of RDMA devices: they write libmlx5's rings and ring its doorbell, or a proxy posts.

Without devices all of it runs on an emulated ConnectX (rdmakit connectx), whose registers are memory of this process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from device_rig import DeviceWorld
from lock_rig import WAYS, Transfers, make_lock

import rdmakit
from rdmakit.connect import open_paths
from rdmakit.device import connected_pair
from rdmakit.emu.uverbs import library, preloaded
from rdmakit.ep import device_gpus
from rdmakit.ep.gpu_queues import open_for_gpus
from rdmakit.errors import CompletionError, HangError, NotAvailable
from rdmakit.gpu import queue_memory
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.device_queues import reach
from rdmakit.gpu.host_pages import host_pages
from rdmakit.gpu.queue_memory import GpuQueueMemory
from rdmakit.signal import SequenceLock
from rdmakit.verbs.backend import device_names

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("device_hosts_program.py")
LIMIT_S = 240
INSIDE = "RDMAKIT_TEST_INSIDE_CONNECTX"


@pytest.fixture(scope="session")
def names():
    found = [name for name in os.environ.get("RDMAKIT_DEVICES", "").split(",") if name] or sorted(device_names()[0])
    if not found:
        pytest.skip("no RDMA device: rdmakit connectx -- python -m pytest tests/gpu/test_device_queues.py")
    return found


def by_command(name):
    """Skips where the device takes no commands."""
    try:
        return open_for_gpus(f"{name}:queues=devx")
    except NotAvailable as error:
        pytest.skip(f"no DevX: {error}")


@pytest.fixture(params=["own", "devx", "proxied"])
def ends(request, names):
    """Two opened devices that kernels of the GPU reach."""
    if request.param == "devx":
        (here, how), (there, _) = (by_command(name) for name in (names[0], names[-1]))
        with here, there:
            yield here, there
            print(f"{how}; {len(host_pages())} pages registered")
        return
    suffix = ":queues=proxied" * (request.param == "proxied")
    with rdmakit.open(names[0] + suffix) as here, rdmakit.open(names[-1] + suffix) as there:
        if request.param == "own" and not here.device.where.startswith("mlx5"):
            pytest.skip(f"{names[0]} has no queues of its own: it is proxied anyway")
        ways = [reach(context) for context in (here, there)]
        yield here, there
        print(f"doorbells: {ways[0].registers or 'of the proxy'}; {len(host_pages())} pages registered")


def put(ends, words, seed, *, sq=64, blocks=3, warps=4, batch=7, access="local_write|remote_write", **handle):
    """`put_words` from one device to the other; source, sink, both queue pairs."""
    world = DeviceWorld(ends)
    near, far = connected_pair(*ends, sq_wqebbs=sq)
    source, sink = world.array(words, np.uint64), world.array(words, np.uint64, 0xDEAD)
    source[:] = np.random.default_rng(seed).integers(0, 2**63, words, dtype=np.uint64)
    of, to = near.pd.register(source), far.pd.register(sink, access)
    pod = near.device_handle(**handle)
    world.stock_kernel("put_words")(blocks, 32 * warps, (world_pod(world, pod), to.remote(), of, words, batch))
    world.run()
    pod.report.raise_for_status()
    return source, sink, near


def world_pod(world, handle):
    """A handle's POD in memory of the world's."""
    made = world.array(1, handle.array.dtype)
    made[0] = handle.array[0]
    return made


def test_an_emulated_connectx_serves_where_there_is_no_device(names, request):
    """Says in the record which devices the rest of this file has run on."""
    emulated = "_uverbs" in os.environ.get("LD_PRELOAD", "")
    print(f"{'emulated' if emulated else 'real'} devices {', '.join(names)}")
    assert names


def test_rings_lie_on_the_gpu_where_the_device_takes_that(names, seed):
    """The emulated ConnectX maps no dma-buf of a GPU's: its rings lie in registered host memory, and it says why."""
    (here, how), (there, _) = (by_command(name) for name in (names[0], names[-1]))
    print(how)
    with here, there:
        assert "made by command" in how
        if "_uverbs" in os.environ.get("LD_PRELOAD", ""):
            assert "in host memory, for the GPU's was refused: " in how
        assert ("memory of the GPU" in here.device.where) == ("rings in memory of the GPU" in how)
        source, sink, near = put((here, there), 3000, seed)
        assert np.array_equal(source, sink) and near.completed == 3000


def test_memory_of_the_gpu_for_queues(monkeypatch):
    """Zeroed regions of one chunk, a descriptor and an offset for each; what is written there is there."""
    try:
        memory = GpuQueueMemory()
    except NotAvailable as error:
        print(f"{error}; a descriptor of nothing stands for the dma-buf")
        monkeypatch.setattr(queue_memory, "dmabuf_of", lambda address, nbytes: os.open(os.devnull, os.O_RDONLY))
        memory = GpuQueueMemory()
    regions = [memory.allocate(nbytes, "ring") for nbytes in (100, 8192, 3 << 20)]
    data = np.random.default_rng(1).integers(0, 256, 100, np.uint8)
    for region in regions:
        assert memory.holds(region.bytes.ctypes.data) and os.fstat(region.dmabuf[0])
        region.write(64, data)
        found = np.full(256, 0xA5, np.uint8)
        cupy().cuda.runtime.memcpy(found.ctypes.data, region.bytes.ctypes.data, found.nbytes, 2)
        assert np.array_equal(found[64:164], data) and not found[:64].any() and not found[164:].any()
    assert regions[0].dmabuf[0] == regions[1].dmabuf[0] and regions[1].dmabuf[1] == 4096


@pytest.mark.parametrize("dialect", ["next_index", "last_wqe"])
def test_many_producers_on_one_small_ring(ends, seed, dialect):
    """12 warps share a ring of 64 blocks: it is full most of the time."""
    source, sink, near = put(ends, 3000, seed, dialect=dialect)
    assert np.array_equal(source, sink) and near.completed == 3000


def test_sixteen_bit_index_wraps(ends, seed):
    source, sink, near = put(ends, 70_000, seed, sq=256, batch=8)
    assert np.array_equal(source, sink) and near.completed == 70_000


def test_one_of_every_kind(ends, seed):
    """Write, read, compare and swap, fetch and add, masked ones of four and eight bytes, by one thread."""
    if ends[0].device.where.startswith("proxied"):
        pytest.skip("masked atomics are an mlx5 device's")
    world = DeviceWorld(ends)
    near, far = connected_pair(*ends, sq_wqebbs=64)
    source, sink = world.array(16, np.uint64), world.array(16, np.uint64)
    of, to = near.pd.register(source), far.pd.register(sink)
    pod = near.device_handle()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        source[:], start = rng.integers(0, 2**63, 16, dtype=np.uint64), rng.integers(0, 2**63, 16, dtype=np.uint64)
        start[2] = 2
        sink[:] = start
        world.stock_kernel("post_each")(1, 32, (world_pod(world, pod), to.remote(), of))
        world.run()
        pod.report.raise_for_status()
        want, low = start.copy(), np.uint64(0xFFFF_FFFF)
        want[0], want[2], want[7] = source[0], 222, start[7] + np.uint64(1)
        want[3] = (start[3] & ~low) | ((start[3] & low) ^ np.uint64(0xFF))
        want[4] = sum(np.uint64((((int(start[4]) >> s) & 0xFF) + 1 & 0xFF) << s) for s in range(0, 64, 8))
        want[5] = (start[5] & ~np.uint64(0xFFFF_0000)) | np.uint64(0xABCD_0000)
        want[6] = (start[6] & ~np.uint64(0xFF)) | np.uint64(0xF0)
        assert np.array_equal(sink, want), [hex(value) for value in sink ^ want]
        assert source[1] == start[1]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "eager"])
def test_every_strategy_delivers(ends, way, seed, rng):
    if way == "amo-narrow" and ends[0].device.where.startswith("proxied"):
        pytest.skip("4-byte atomics are an mlx5 device's")
    world = DeviceWorld(ends)
    lock = make_lock(world, way, slots=4, max_payload=9000)
    moved = Transfers(world, [lock], rng.integers(0, 9001, 64), rng)
    moved.launch()
    moved.check()
    assert lock.in_flight == 0


@pytest.mark.parametrize("way", ["amo", "imm", "write"])
def test_many_queue_pairs_at_once(ends, way, seed, rng):
    """A thousand transfers by 16 queue pairs, whose records share pages and whose doorbells may share a register."""
    world = DeviceWorld(ends)
    pds = [context.alloc_pd() for context in ends]
    locks = [SequenceLock(*pds, strategy=way, slots=16, max_payload=256, channel=k) for k in range(16)]
    moved = Transfers(world, locks, rng.integers(0, 257, (16, 64)), rng)
    moved.launch()
    moved.check()


def test_a_peer_that_refuses_is_a_completion_error(ends, seed):
    with pytest.raises(CompletionError, match="REM_ACCESS_ERR"):
        put(ends, 64, seed, access="local_write")


def test_a_peer_that_is_late_is_reported(ends, seed, rng):
    world = DeviceWorld(ends)
    lock = make_lock(world, "amo", slots=4, max_payload=64, timeout_ns=20_000_000)
    moved = Transfers(world, [lock], np.full(8, 64), rng)
    with pytest.raises(HangError, match="credit for the slot of the next ticket"):
        moved.launch(receive=False)


def test_pages_are_given_back(names, seed):
    gc.collect()  # what the tests before this one left
    before = len(host_pages())
    with rdmakit.open(names[0]) as here, rdmakit.open(names[-1]) as there:
        ways = [reach(context) for context in (here, there)]
        put((here, there), 100, seed)
        assert len(host_pages()) > before or not ways[0].registers
    del here, there, ways
    gc.collect()
    assert len(host_pages()) <= before


def test_where_heaps_lie_is_found_by_trying(names):
    paths = open_paths([names[0]])
    way = device_gpus.heap_way(paths)
    print(way)
    if "_uverbs" in os.environ.get("LD_PRELOAD", ""):
        assert way.kind == "host" and "dma-buf: " in way.why and "peermem: " in way.why
    assert way.kind in ("dma-buf", "peermem", "host")


def processes(count, each, names, where, *options):
    """`count` ranks of the program, `each` on a host: exit statuses, and what they said."""
    environment = {**os.environ, "RDMAKIT_DEVICES": ",".join(names), "RDMAKIT_RANKS_PER_HOST": str(each)}
    command = [sys.executable, str(PROGRAM), "--meet", f"file:{where}/meeting", "--ranks", str(count), *options]
    ranks = [subprocess.Popen([*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) for rank in range(count)]  # fmt: skip
    try:
        said = [rank.communicate(timeout=LIMIT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    print(*(text[-5000:] for text in said), sep="\n")
    return [rank.returncode for rank in ranks], said


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("queues", ["own", "devx", "proxied"])
def test_buffer_in_processes_as_two_hosts(names, queues, each, seed, tmp_path):
    """DeepEP's calls, both kinds, one and two ranks a host, on one GPU that all share or one a host, against NumPy."""
    pytest.importorskip("torch", reason="torch is not installed")
    if queues == "devx":
        by_command(names[0])[0].close()
    devices = [name if queues == "own" else f"{name}:queues={queues}" for name in names[:2]]
    options = "--seed", str(seed % 10_000), "--rounds", "2" if each == 1 else "1"
    status, said = processes(2 * each, each, devices, tmp_path, *options)
    assert status == [0] * (2 * each) and all("all right" in text for text in said)
    who = "a proxy on the CPU posts" if queues == "proxied" else "kernels on the GPU ring the registers"
    assert who in said[0] and "heaps are " in said[0]
    if each > 1:
        assert "2 ranks of a host share it" in said[0] or "2 ranks of a host map each other's by CUDA IPC" in said[0]


def test_gpus_that_would_lose_additions_are_refused(names, tmp_path):
    """Ranks of a host on two GPUs, heaps in the host's memory: all refuse, and say why, unless the bus has atomics."""
    cp = cupy()
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU: all ranks add through it")
    if device_gpus.heap_way(open_paths(names[:1])).kind != "host":
        pytest.skip("heaps lie on the GPUs")
    pytest.importorskip("torch", reason="torch is not installed")
    status, said = processes(4, 2, names[:2], tmp_path, "--gpus", "spread", "--rounds", "1")
    if cp.cuda.Device().attributes.get("HostNativeAtomicSupported", 0):
        assert status == [0] * 4
    else:
        assert all(status) and all("several GPUs of one host" in text for text in said)


def test_ranks_of_a_host_map_each_others_gpu_memory(tmp_path):
    """By CUDA IPC, as where NICs register it: four processes, two a host, on as many GPUs as there are."""
    command = [sys.executable, str(PROGRAM.with_name("device_link_program.py")), f"file:{tmp_path}/meeting"]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for rank in range(4)]  # fmt: skip
    try:
        said = [rank.communicate(timeout=LIMIT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    print(*said, sep="\n")
    assert [rank.returncode for rank in ranks] == [0] * 4


@pytest.mark.parametrize("part", ["in_processes", "not in_processes"])
def test_all_of_this_on_an_emulated_connectx(part, run_seed):
    """This very file, once more, in a process whose libmlx5 finds emulated NICs."""
    if INSIDE in os.environ or device_names()[0]:
        pytest.skip("there are devices: the tests above have run on them")
    try:
        library()
    except NotAvailable as error:
        pytest.skip(str(error))
    try:
        for name in ("libibverbs.so.1", "libmlx5.so.1"):
            ctypes.CDLL(name)
    except OSError as error:
        pytest.skip(f"{error}: apt-get install libibverbs1 ibverbs-providers, or .ci/rdma-libs")
    with preloaded(2) as environment:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", f"--seed={run_seed}", "-k", part,
             __file__],
            env={**environment, INSIDE: "1"}, cwd=ROOT, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
    print(done.stdout[-10_000:], done.stderr[-3000:])
    assert done.returncode == 0 and re.search(r"\d+ passed", done.stdout)
