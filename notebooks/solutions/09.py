# %% exercise="09.receiver"
# exercise: 09.receiver
mine = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL receive(QpHandle qp, const u64* slots, const u64* tail, RemoteMemory credit, u32 count, u64* out) {
    for (u64 t = 1; t <= count; ++t) {
        const u64* const slot = slots + 4 * (t % 2);
        u64 seen = 0;
        // The atomic is behind all of the slot, and an acquire at system scope keeps our loads behind it.
        if (wait_signal(tail, t, qp.watch, about(qp, "the tail", t), &seen) != Status::ok) return;
        for (u32 i = 0; i < 3; ++i) out[3 * (t - 1) + i] = slot[1 + i];
        signal(qp, credit, 1);  // last: from here on the sender may fill the slot again
    }
    quiet(qp);
}
"""
