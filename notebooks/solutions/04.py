# %% exercise="04.fences"
# exercise: 04.fences
mine = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL post(const QpHandle* handle, RemoteMemory to, LocalMemory from, u32 count, u64* t) {
    const QpHandle& qp = *handle;
    for (u32 i = 0; i < count; ++i) {
        auto* slot = reinterpret_cast<Vec16*>(sq_slot(qp, i));
        store_segment(slot + 0, ctrl_segment(Opcode::write, 0, i, qp.qpn, 3, kCqUpdate));
        store_segment(slot + 1, remote_segment(to.address + 64 * i, to.key));
        store_segment(slot + 2, data_segment(from.address + 64 * i, 64, from.key));
        fence<Scope::sys>();  // the WQE before the record: any bell may make the NIC read up to the record
        store_relaxed<Scope::sys>(qp.dbrec, swap_bytes(i + 1));
        fence<Scope::sys>();  // the record before the bell: the NIC looks at it once
        mmio_store(qp.doorbell, doorbell_next(qp.qpn, i + 1));
    }
    u32 tail = 0;
    wait_until<Scope::sys>(cqe_tail_address(qp.cq, count - 1), [](u32 cqe) { return cqe >> 28 != 15; }, qp.watch,
                           about(qp, "the last completion", count), &tail);
}
"""
