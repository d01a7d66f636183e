"""The PODs that kernels take: NumPy's offsets against g++'s, and what `device_handle` puts into them."""

import shutil
import subprocess

import numpy as np
import pytest

import rdmakit
from rdmakit.device import (
    CQ_HANDLE,
    LAYOUT_VERSION,
    QP_HANDLE,
    REPORT,
    SQ_STATE,
    WATCH,
    Report,
    connected_pair,
    handle_array,
)
from rdmakit.device.queue_record import QUEUE_RECORD, QUEUE_VIEW
from rdmakit.emu.cta_layout import HCA_CQ, HCA_HANDLE, HCA_QP, HCA_SINK, KEY_ENTRY, KEY_TABLE
from rdmakit.errors import BadArgument, BadState, CompletionError, LaunchError

STRUCTS = {
    "CqHandle": CQ_HANDLE,
    "SqState": SQ_STATE,
    "QpHandle": QP_HANDLE,
    "Watch": WATCH,
    "Report": REPORT,
    "QueueView": QUEUE_VIEW,
    "QueueRecord": QUEUE_RECORD,
    "KeyEntry": KEY_ENTRY,
    "KeyTable": KEY_TABLE,
    "HcaCq": HCA_CQ,
    "HcaQp": HCA_QP,
    "HcaHandle": HCA_HANDLE,
    "HcaSink": HCA_SINK,
}


@pytest.fixture(scope="module")
def c_layout(tmp_path_factory):
    """sizeof and offsetof of every struct and field, as g++ sees the headers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    prints = ['std::printf("RDMAKIT_LAYOUT_VERSION 0 %u\\n", RDMAKIT_LAYOUT_VERSION);']
    for name, dtype in STRUCTS.items():
        prints.append(f'std::printf("{name} . %zu\\n", sizeof({name}));')
        for field in dtype.names:
            prints.append(
                f'std::printf("{name} {field} %zu\\n", offsetof({name}, {field}) * 1000 + sizeof({name}::{field}));'
            )
    work = tmp_path_factory.mktemp("layout")
    source = work / "layout.cpp"
    body = "\n".join(prints)
    source.write_text(
        f"#include <cstdio>\n#include <rdmakit/hca_engine.cuh>\n#include <rdmakit/hca_sink.cuh>\n"
        f"#include <rdmakit/queue.cuh>\nusing namespace rdmakit;\nint main() {{\n{body}\n}}\n"
    )
    binary = work / "layout"
    command = [compiler, "-std=c++17", "-Wno-invalid-offsetof", "-I", rdmakit.get_include(), source, "-o", binary]
    subprocess.run(command, check=True)
    lines = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.split("\n")
    return {(a, b): int(c) for a, b, c in (line.split() for line in lines if line)}


@pytest.mark.parametrize("name", STRUCTS)
def test_offsets_and_sizes_are_those_of_the_headers(c_layout, name):
    dtype = STRUCTS[name]
    assert dtype.itemsize == c_layout[name, "."]
    for field in dtype.names:
        kind, offset = dtype.fields[field][:2]
        assert (offset * 1000 + kind.itemsize, field) == (c_layout[name, field], field)


def test_layout_version_is_that_of_the_headers(c_layout):
    assert c_layout["RDMAKIT_LAYOUT_VERSION", "0"] == LAYOUT_VERSION


@pytest.fixture
def pair():
    world = rdmakit.World(hosts=2)
    return connected_pair(world.open(0), world.open(1))


def test_handle_points_at_the_live_queues(pair):
    qp, _ = pair
    handle = qp.device_handle(peer=3, channel=2, rank=1, batch=8, timeout_ns=77)
    assert handle["layout_version"] == handle["cq"]["layout_version"] == LAYOUT_VERSION
    assert handle["qpn"] == qp.qpn
    assert handle["sq"] == qp.sq_view().ctypes.data
    assert handle["dbrec"] == qp.dbrec_view().ctypes.data + 4
    assert handle["doorbell"] == qp.query()["uar_register"]
    assert handle["state"] % 128 == 0
    assert (handle["log_sq"], handle["batch"], handle["peer"], handle["channel"]) == (7, 8, 3, 2)
    assert handle["cq"]["entries"] == qp.send_cq.view().ctypes.data
    assert tuple(handle["watch"]) == (handle.report.address, 77, 1)
    assert "QpHandle" in repr(handle) and "<table" in handle._repr_html_()


def test_two_handles_of_one_queue_pair_share_its_state_and_one_sink_serves_the_pd(pair):
    qp, _ = pair
    first, second = qp.device_handle(channel=0), qp.device_handle(channel=1)
    assert first["state"] == second["state"]
    assert first["sink_address"] == second["sink_address"]
    assert len(qp.pd.memory_regions) == 0  # the sink is the PD's own affair


def test_handle_array_keeps_its_handles_alive(pair):
    qp, _ = pair
    array = handle_array([qp.device_handle(channel=c) for c in range(3)])
    assert array.shape == (3,) and array.dtype == QP_HANDLE
    assert array["channel"].tolist() == [0, 1, 2]
    assert len(array.owners) == 3 and len(array[1:].owners) == 3
    with pytest.raises(BadArgument, match="no handles"):
        handle_array([])


def test_a_shared_completion_queue_is_refused(pair):
    qp, _ = pair
    second = qp.pd.create_qp(qp.send_cq)
    with pytest.raises(BadState, match="serves more than the send queue") as caught:
        qp.device_handle()
    assert repr(hex(second.qpn))[1:-1] in str(caught.value)
    with pytest.raises(BadArgument, match="dialect"):
        qp.device_handle(dialect="first")


def test_host_and_kernel_take_turns(pair):
    near, far = pair
    world = near.context._provider.world
    module = world.compile(
        "#include <rdmakit/post.cuh>\n#include <rdmakit/warp.cuh>\nusing namespace rdmakit;\n"
        "RDMAKIT_KERNEL put(QpHandle qp, u64 from, u32 lkey, u64 to, u32 rkey, u32 n) {\n"
        "  if (!check_handle(qp) || block_rank() != 0) return;\n"
        "  for (u32 i = 0; i < n; ++i) {\n"
        "    const u64 slot = reserve(qp, 1);\n"
        "    write_rdma(qp, slot, Opcode::write, to + 8 * i, rkey, from + 8 * i, lkey, 8, kCqUpdate);\n"
        "    publish(qp, slot, 1);\n"
        "  }\n"
        "  quiet(qp);\n"
        "}\n"
    )
    source, target = np.arange(300, dtype=np.uint64), np.zeros(300, np.uint64)
    mine, theirs = near.pd.register(source), far.pd.register(target)
    near.post_write(mine[:8], theirs[:8])  # the host first
    near.send_cq.wait()
    handle = near.device_handle()
    for begin in (1, 150):
        args = (handle, mine.address + 8 * begin, mine.lkey, theirs.address + 8 * begin, theirs.rkey, 149)
        module.get_function("put")(1, 32, args)
        world.run()
        assert not handle.report
        near.post_write(mine[2392:], theirs[2392:])  # and the host again, on the same ring
        (done,) = near.send_cq.wait()
        assert done.wqe_index == near.posted - 1 and near.completed == near.posted
    assert (source == target).all()


def test_report_becomes_the_error_it_stands_for():
    report = Report()
    assert not report and report.error() is None and report.raise_for_status() is report
    report.array["state"], report.array["status"] = 2, 2
    report.array["syndrome"], report.array["qpn"], report.array["index"] = 0x13, 0x41, 7
    report.array["what"], report.array["file"], report.array["line"] = b"room", b"queue.cuh", 12
    with pytest.raises(CompletionError) as caught:
        report.raise_for_status()
    assert (caught.value.wc_status, caught.value.qpn, caught.value.wqe_index) == ("REM_ACCESS_ERR", 0x41, 7)
    assert "queue.cuh:12" in str(caught.value) and "waited for room" in repr(report)
    report.array["status"] = 4
    with pytest.raises(LaunchError):
        report.raise_for_status()
    report.clear()
    assert not report and "<table" in report._repr_html_()


def test_a_send_ring_longer_than_its_cq_is_refused():
    """Kernels poll when the ring is full; a CQ that is shorter would have overflown by then."""
    world = rdmakit.World(hosts=2, ports=1)
    near, far = connected_pair(world.open(host=0), world.open(host=1), sq_wqebbs=64, cq_entries=32)
    with pytest.raises(BadState, match="shorter than the send ring") as caught:
        near.device_handle()
    assert caught.value.value == 32 and "create_cq(64)" in caught.value.remedy
    assert far.send_cq.entries == 32


def test_a_kernel_refuses_a_handle_of_another_layout(pair):
    qp, _ = pair
    world = qp.context._provider.world
    kernel = world.compile(
        "#include <rdmakit/queue.cuh>\nRDMAKIT_KERNEL touch(rdmakit::QpHandle qp) { rdmakit::check_handle(qp); }"
    ).get_function("touch")
    handle = qp.device_handle()
    handle.array["layout_version"] = 99
    kernel(1, 32, (handle,))
    world.run()
    with pytest.raises(LaunchError, match="layout version") as caught:
        handle.report.raise_for_status()
    assert (caught.value.facts["expected"], caught.value.facts["seen"]) == (LAYOUT_VERSION, 99)
