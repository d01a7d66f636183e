// rdmakit/hca_engine.cuh — an HCA made of warps: they look at doorbells, fetch WQEs, execute them in order, write CQEs.
// Layer: hca (leans on hca_near). For GPUs without a NIC: the CTAs of hca_serve run beside an operation's kernels, or some
// CTAs of its own grid call hca_serve() and the others hca_leave() when they are done. It ends when it is not needed any
// more, or has found nothing to do for as long as its watch says: a kernel without end would stop the whole device.
//
// With a warp for each queue pair, each has one to itself (hca_near.cuh). Otherwise several warps look at groups of them.
// What it shares with the CPU engine (rdmakit/emu/hca) is hca.cuh; it has neither packets nor time nor faults.
#pragma once
#include "hca_near.cuh"

namespace rdmakit {

// ---- all of them ------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE u32 hca_groups(const HcaHandle& hca) { return ceil_div(hca.count, kHcaGroup); }

// One look at a group of queue pairs; serves those that have something to do. True if any had. `turn` says with which to
// begin, so that several warps take different ones.
RDMAKIT_DEVICE bool hca_look(const HcaHandle& hca, u32 group, u32 turn, bool last_chance) {
    const u32 first = group * kHcaGroup;
    const u32 count = smaller(hca.count - first, kHcaGroup);
    const u32 wanted = lanes_that(count, [&](u32 i) {
        const u64 value = load_relaxed<Scope::sys>(&hca.registers[first + i]);
        const u64 heard = load_relaxed<Scope::sys>(&hca.heard[first + i]);
        return value != heard || load_relaxed<Scope::sys>(&hca.attend[first + i]) != 0;
    });
    bool worked = false;
    for (u32 k = 0; k < count && wanted != 0; ++k) {
        const u32 i = (k + 4 * turn) % count;
        if ((wanted >> i & 1) != 0 && serve_qp(hca, first + i, last_chance)) worked = true;
    }
    return worked;
}

#if !RDMAKIT_GPU
// Parks until something may have changed since a look that found nothing: a register, the word of those who have ended, the
// receive record that a stalled sender waits for, the turn of a queue pair that another warp is serving. With more of those
// than a fibre can watch, it comes back at once.
inline bool hca_park(const HcaHandle& hca, u32 group, u32 left, Spin& spin, const Subject& who, Site site) {
    constexpr u32 kLine = kHcaGroup / 2;
    const u32 first = group * kHcaGroup;
    u64 heard[kHcaGroup];
    const HcaQp* waiting = nullptr;
    u32 stalled = 0;
    for (u32 i = 0; i < kHcaGroup; ++i) {
        heard[i] = load_relaxed<Scope::sys>(&hca.heard[first + i]);
        if (first + i >= hca.count) continue;
        const bool attend = load_relaxed<Scope::sys>(&hca.attend[first + i]) != 0;
        const u32* const turn = &hca.qps[first + i].turn;
        if (attend || load_relaxed<Scope::sys>(&hca.registers[first + i]) != heard[i]) {
            if (load_relaxed<Scope::sys>(turn) != 0) return spin.pause(who, site, Seen<u32>{hca.left, left}, Seen<u32>{turn, 1u});
        }
        if (!attend) continue;
        ++stalled;
        waiting = hca.qps[first + i].peer;
    }
    if (stalled > 1 || (stalled == 1 && waiting == nullptr)) {
        sleep_ns(100);
        return true;
    }
    const SeenLine near{&hca.registers[first], heard, kLine}, far{&hca.registers[first + kLine], heard + kLine, kLine};
    const Seen<u32> ended{hca.left, left};
    if (stalled == 0) return spin.pause(who, site, ended, near, far);
    const Seen<u32> record{&waiting->dbrec[kDbrecReceive], swap_bytes(static_cast<u32>(waiting->rq_consumed) & 0xffff)};
    return spin.pause(who, site, ended, near, far, record);
}
#endif

// Serves until `leavers` kernels have called hca_leave and nothing is left to do. Every warp of the blocks that take part
// calls it: `warp` of `warps`. Several may look at the same queue pairs; each is served by one at a time.
// `probe` hears of stages of what goes the short way.
template <class Probe = NoProbe>
RDMAKIT_DEVICE void hca_serve(const HcaHandle& hca, u32 warp, u32 warps, Probe&& probe = Probe{}, Site site = Site::here()) {
    if (!layout_matches(hca.layout_version, hca.watch, "HcaHandle of another layout version", site) || hca.count == 0) return;
    if (hca.count <= warps) {
        if (warp < hca.count) serve_near(hca, warp, probe, site);
        return;
    }
    const u32 groups = hca_groups(hca);
    const u32 mine = warp % groups;
    const Subject who{"a doorbell, or the end of the kernels that ring", hca.leavers, 0, 0, 0};
    for (Spin spin(hca.watch);;) {
        const u32 left = warp_broadcast(load_acquire<Scope::sys>(hca.left));  // before the look, which then sees all that they rang
        const bool over = left >= hca.leavers;
        warp_sync();
        bool worked = false;
        for (u32 group = mine; group < groups; group += warps) worked |= hca_look(hca, group, warp / groups, over);
        if (worked) {
            spin = Spin(hca.watch);
            continue;
        }
        if (over) return;
        u32 more = 0;
        if (lane_id() == 0) {
#if RDMAKIT_GPU
            more = spin.pause(who, site, Seen<u32>{hca.left, left}) ? 1 : 0;
#else
            if (warps < groups) sleep_ns(100);  // more registers than one fibre can watch
            more = warps < groups || hca_park(hca, mine, left, spin, who, site) ? 1 : 0;
#endif
        }
        if (warp_broadcast(more) == 0) return;
    }
}

// All that this kernel's block has rung for is to be served: called once by all threads of each block that counts as a leaver.
RDMAKIT_DEVICE void hca_leave(u32* left) {
    block_sync();
    if (block_rank() == 0) {
        fence<Scope::sys>();
        fetch_add<Scope::sys>(left, 1u);
    }
}

}  // namespace rdmakit
