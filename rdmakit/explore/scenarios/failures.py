"""Device code that has to give up: one report of the first who does, senders and receivers that notice why.

Leans on lock and signal. The schedule holds if exactly that is reported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import WATCH, Report
from rdmakit.device.report import REPORT, DeviceStatus
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.lock import make_lock
from rdmakit.explore.scenarios.pair import Pair
from rdmakit.signal import handles
from rdmakit.signal.abi import LOCK_TRANSFER

_SOURCE = """
#include <rdmakit/report.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL give_up(Watch watch) {
    const u32 me = static_cast<u32>(block_id()) + 1;
    fail(watch, Status::bad_argument, Subject{"nothing", me, me, me, me}, me, me, me, me, me, Site::here());
}
RDMAKIT_KERNEL await_report(const Report* report, Watch watch, u64* told) {
    u32 state = 0;
    const auto there = [](u32 v) { return v == 2; };
    if (wait_until<Scope::sys>(&report->state, there, watch, Subject{"a report", 2}, &state) != Status::ok) return;
    told[0] = report->expected;
    told[1] = report->seen;
    told[2] = report->index;
    told[3] = report->qpn;
}
RDMAKIT_KERNEL wait_in_vain(const u64* never, Watch watch, u64* told) {
    u64 seen = 0;
    const auto there = [](u64 v) { return v != 0; };
    told[0] = static_cast<u64>(wait_until<Scope::sys>(never, there, watch, Subject{"nothing", 1}, &seen));
}
"""


@scenario(
    "report-once",
    "of all who give up one reports, whole, and whoever polls the report reads it",
    tags=("quick",),
)
def report_once(scene: Scene) -> None:
    """Two blocks of rank 0 fail at once; rank 1 waits for the report as a host does, and reads it."""
    world = scene.world(gpus_per_host=2)
    report = Report(world.array(REPORT.itemsize, np.uint8, name="report"))
    told = world.array(4, np.uint64, name="what was read")
    gives, waits = np.zeros((), WATCH), np.zeros((), WATCH)
    gives["report"], gives["rank"], waits["rank"] = report.address, 0, 1
    module = world.compile(_SOURCE, name="give_up.cu")
    module.get_function("await_report")(1, 32, (report.address, waits, told), rank=1)
    module.get_function("give_up")(2, 32, (gives,), rank=0)
    scene.keep(report, module)

    def whole() -> str | bool:
        first = int(told[0])
        return (first in (1, 2) and bool((told == first).all())) or f"a mixture was read: {told.tolist()}"

    scene.check(whole)


@scenario("report-stops-all", "a GPU's report ends the waits of another GPU that shares it", tags=("quick",))
def report_stops_all(scene: Scene) -> None:
    """Rank 0 fails; rank 1 waits for what never comes, with the same report: a host may abort GPUs in this way, too."""
    world = scene.world(gpus_per_host=2)
    report = Report(world.array(REPORT.itemsize, np.uint8, name="report"))
    never, told = world.array(1, np.uint64, name="what never comes"), world.array(1, np.uint64, name="status")
    watches = np.zeros(2, WATCH)
    watches["report"], watches["rank"] = report.address, (0, 1)
    module = world.compile(_SOURCE, name="give_up.cu")
    module.get_function("wait_in_vain")(1, 32, (never, watches[1], told), rank=1)
    module.get_function("give_up")(1, 32, (watches[0],), rank=0)
    scene.keep(report, module)
    scene.check(lambda: int(told[0]) == DeviceStatus.ABORTED or f"rank 1 ended with {DeviceStatus(int(told[0])).name}")
    scene.check(lambda: report.status is DeviceStatus.BAD_ARGUMENT or f"rank 0 reports {report.status.name}")


@scenario(
    "lock-sender-fails",
    "a sender whose queue pair or payload is bad says so, and does not wait for ever",
    tags=("lock",),
)
def lock_sender_fails(scene: Scene) -> None:
    """Option `fault`: "key" (the ring's key is wrong: a completion error while it waits for credit) or "length"."""
    fault = str(scene.options.get("fault", "key"))
    wanted = {"key": DeviceStatus.COMPLETION_ERROR, "length": DeviceStatus.BAD_ARGUMENT}
    if fault not in wanted:
        raise BadArgument("no such fault", value=fault, rule="key or length", remedy="--set fault=key")
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    count, length = lock.slots + 1, lock.max_payload
    source = world.array((count, 2 * length), np.uint8, 7, name="source")
    orders, firsts = world.array((count,), LOCK_TRANSFER), world.array((1,), np.uint64)
    orders["length"] = 2 * length if fault == "length" else length
    senders, _ = handles([lock], world.array)
    if fault == "key":
        senders["ring"]["key"] ^= 0x100
    world.stock_kernel("lock_send")(1, 32, (senders, 1, firsts, count, orders, source), rank=0)
    scene.keep(lock, senders, orders, firsts, source)
    report = lock.reports[0]
    scene.check(lambda: report.status is wanted[fault] or f"the sender says {report.status.name}")


@scenario("lock-receiver-fails", "a receiver whose queue pair breaks while it waits says so", tags=("lock",))
def lock_receiver_fails(scene: Scene) -> None:
    """Strategy `imm`: the receiver's queue pair goes to ERR at any moment; its receive WQEs are flushed."""
    scene.options = {**scene.options, "strategy": "imm"}
    world = scene.world(hosts=2, ports=1)
    lock = make_lock(scene, world)
    copies = world.array((1, lock.max_payload), np.uint8, 0xA5, name="copies")
    lengths, firsts = world.array((1,), np.uint32, name="lengths"), world.array((1,), np.uint64)
    _, receivers = handles([lock], world.array)
    world.stock_kernel("lock_receive")(
        1, 32, (receivers, 1, firsts, 1, copies, lock.max_payload, lengths, None), rank=1
    )
    scene.act(lambda: lock.receiver_qp.modify("ERR") and None)
    scene.keep(lock, receivers, copies, lengths, firsts)
    report = lock.reports[1]

    def told() -> str | bool:
        if report.status is not DeviceStatus.COMPLETION_ERROR or report.syndrome != 5:
            return f"the receiver says {report.status.name}, syndrome {report.syndrome}"
        return bool((copies == 0xA5).all()) or "something was delivered"

    scene.check(told)


@scenario("handle-refused", "a kernel does not touch a queue whose handle has another layout", tags=("quick", "queue"))
def handle_refused(scene: Scene) -> None:
    """The handle's `layout_version` is one that the headers do not know."""
    pair = Pair(scene, 4, wqebbs=4, watch=False)
    pair.handle.array["layout_version"] += 1
    pair.put_words(blocks=1, warps=1)
    report: Any = pair.handle.report
    scene.expect(pair.sink, 0, "sink")
    scene.check(lambda: report.status is DeviceStatus.LAYOUT_MISMATCH or f"the kernel says {report.status.name}")


@scenario(
    "reservation-too-large",
    "more basic blocks than the ring has are refused before anything is taken",
    tags=("quick", "queue"),
)
def reservation_too_large(scene: Scene) -> None:
    """Eight words in one reservation of a ring of four."""
    pair = Pair(scene, 8, wqebbs=4, watch=False)
    pair.put_words(blocks=1, warps=1, batch=8)
    state = pair.qp._sends.state_memory.view(np.uint64)
    report: Any = pair.handle.report
    scene.expect(pair.sink, 0, "sink")
    scene.expect(state[:1], 0, "reserved of the send queue")
    scene.check(lambda: report.status is DeviceStatus.BAD_ARGUMENT or f"the kernel says {report.status.name}")
