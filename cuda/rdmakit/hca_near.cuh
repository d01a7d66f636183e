// rdmakit/hca_near.cuh — a queue pair that has a warp to itself: what the warp knows of it stays in registers from one
// doorbell to the next, and the requests that make up a put and its signal go a short way.
// Layer: hca (leans on hca_execute). All lanes call.
//
// The short way is that of WRITEs and FETCH_ADDs of one basic block with one local segment, between queue pairs that are
// well. All else goes the way of hca_execute.cuh, which alone knows errors: whatever a check here refuses is checked there
// once more. The warp keeps the queue pair's turn. Who changes what it has in registers says so by `attend`.
#pragma once
#include "hca_execute.cuh"
#include "hca_task.cuh"

namespace rdmakit {

// ---- stages, for those who measure --------------------------------------------------------------------------------------
enum class Stage : u32 { heard = 0, fetched = 1, placed = 2, ordered = 3, signalled = 4, completed = 5 };
constexpr u32 kStages = 6;
struct NoProbe {
    RDMAKIT_DEVICE void mark(Stage) {}
};

// ---- what a warp knows ----------------------------------------------------------------------------------------------------
struct Near {
    HcaQp* qp;
    const u64* bell;
    u64* heard_at;
    u32* attend;
    const u8* sq;
    HcaCq* cq;
    const u32* record;
    HcaDoorbell doorbell;
    u32 log_sq, qpn, sig_all;
    Rights rights;
    u32 in_order;
    bool same_gpu;
    u64 heard, completed;
    u32 pending;           // basic blocks from `completed` on that were rung for
    bool unordered;        // something was placed behind which no fence stands yet
    u64 doorbells, ignored, send_wqes, atomics, cqes, sent, fetched;

    RDMAKIT_DEVICE u32 entries() const { return 1u << log_sq; }
    RDMAKIT_DEVICE void take_up(const HcaHandle& hca, u32 index) {
        qp = &hca.qps[index];
        bell = &hca.registers[index];
        heard_at = &hca.heard[index];
        attend = &hca.attend[index];
        sq = qp->sq;
        log_sq = qp->log_sq;
        cq = qp->send_cq;
        record = qp->dbrec + kDbrecSend;
        doorbell = qp->doorbell;
        qpn = qp->qpn;
        sig_all = qp->sq_sig_all;
        same_gpu = qp->same_gpu != 0;
        rights.local.begin(qp->keys, qp->pd);
        rights.access = 0;
        completed = qp->completed;
        pending = static_cast<u32>(qp->producer - completed);
        heard = *heard_at;  // while a warp has the turn, nobody else writes it, and where each has one, nobody reads it
        unordered = true;
        doorbells = ignored = send_wqes = atomics = cqes = sent = fetched = 0;
        in_order = 0;
        HcaQp* const peer = qp->peer;
        if (state_of(*qp) != HcaQpState::rts || peer == nullptr) return;
        const HcaQpState state = state_of(*peer);
        if ((state != HcaQpState::rtr && state != HcaQpState::rts && state != HcaQpState::sqd) || peer->peer != qp) return;
        const bool counts = qp->max_rd_atomic != 0 && peer->max_dest_rd_atomic != 0;
        rights.access = peer->access & (kKeyRemoteWrite | (counts ? kKeyRemoteAtomic : 0u));
        in_order = peer->in_order;
        rights.remote.begin(qp->peer_keys, peer->pd);
    }
    // Into memory, for hca_execute.cuh.
    RDMAKIT_DEVICE void give_back() const {
        warp_sync();
        if (lane_id() == 0) {
            *heard_at = heard;
            qp->producer = completed + pending;
            qp->completed = completed;
            qp->doorbells += doorbells;
            qp->ignored += ignored;
            qp->send_wqes += send_wqes;
            qp->send_bbs += send_wqes;
            qp->atomics += atomics;
            qp->cqes += cqes;
            qp->sent_bytes += sent;
            qp->fetched_bytes += fetched;
        }
        warp_sync();
    }
    RDMAKIT_DEVICE void settle() {
        if (unordered) order_after_payload(same_gpu);
        unordered = false;
    }
};

// ---- WQEs -----------------------------------------------------------------------------------------------------------------
// Basic blocks from `completed` on, a segment in each lane: `count` of them. Then what they ask for, in each of a block's lanes;
// `next` have been executed.
struct Fetched {
    Vec16 mine;
    Task task;
    u32 next, count;
};
constexpr u32 kFetchBlocks = kLanes == 1 ? 1 : kWarpThreads / kDsPerBb;

// One round trip for all of them. They were published before what said so was acquired.
RDMAKIT_DEVICE Fetched fetch_blocks(const Near& n, u32 published) {
    Fetched fetched{Vec16{}, Task{}, 0, smaller(published, kFetchBlocks)};
    if constexpr (kLanes > 1) {
        const u32 lane = static_cast<u32>(lane_id());
        const u32 slot = (static_cast<u32>(n.completed) * kDsPerBb + lane) & (n.entries() * kDsPerBb - 1);
        if (lane < fetched.count * kDsPerBb) fetched.mine = *reinterpret_cast<const Vec16*>(n.sq + slot * kDs);
    }
    return fetched;
}
// All of them at once: what it takes to understand one is most of what the HCA does.
RDMAKIT_DEVICE void understand(Near& n, Fetched& fetched) {
    const u32 block = static_cast<u32>(lane_id()) / kDsPerBb;
    Vec16 segments[kDsPerBb];
    for (u32 ds = 0; ds < kDsPerBb; ++ds) {
        if constexpr (kLanes == 1) {
            segments[ds] = load_ds(SendRing{n.sq, n.log_sq}, n.completed, ds);
        } else {
            for (u32 i = 0; i < 4; ++i)
                segments[ds].w[i] = warp_shuffle(fetched.mine.w[i], static_cast<int>(block * kDsPerBb + ds));
        }
    }
    const Request r = read_request(segments, (static_cast<u32>(n.completed) + block) & 0xffff, n.qpn, n.sig_all != 0);
    fetched.task = allow(n.rights, r, r.known && block < fetched.count, block == 0);
}
// The next one's, in every lane.
RDMAKIT_DEVICE Task next_task(const Fetched& fetched) {
    const Task& t = fetched.task;
    const int from = static_cast<int>(fetched.next * kDsPerBb);
    return Task{warp_shuffle(t.from, from), warp_shuffle(t.to, from), warp_shuffle(t.low, from),
                warp_shuffle(t.high, from), warp_shuffle(t.bytes, from), warp_shuffle(t.what, from)};
}

// ---- doorbells --------------------------------------------------------------------------------------------------------------
// `value` was acquired and is not what was heard last; nothing is pending. While the blocks for which it vouches are on their
// way, the record and `attend` are looked at: whoever knew of a change and rang after it is not served as before. False: not
// the short way.
RDMAKIT_DEVICE bool hear_near(Near& n, u64 value, Fetched* fetched) {
    const Doorbell bell = decode_doorbell(value);
    const u32 done = static_cast<u32>(n.completed), told = (doorbell_next_index(bell) - done) & 0xffff;
    if (n.rights.access == 0 || bell.qpn != n.qpn || told > n.entries()) return false;
    *fetched = fetch_blocks(n, told);
    u32 pending = told, asked = 0;
    {
        const Abreast in_flight(1);
        asked = load_relaxed<Scope::sys>(n.attend);
        if (n.doorbell != HcaDoorbell::no_dbr) {
            const u32 recorded = (swap_bytes(load_relaxed<Scope::sys>(n.record)) - done) & 0xffff;
            pending = n.doorbell == HcaDoorbell::dbrec ? recorded : larger(told, recorded);
        }
    }
    pending = warp_broadcast(pending);
    // What it stores is to say all that whoever rang knew, as a NIC's writes do: an acquire alone hands nothing on. And what
    // the record vouches for beyond the bell is fetched behind this fence.
    n.unordered = true;
    n.settle();
    if (warp_any(asked != 0) || pending > n.entries()) return false;
    n.heard = value;
    n.pending = pending;
    ++n.doorbells;
    n.ignored += pending == 0 ? 1 : 0;
    return true;
}

// ---- one WQE ----------------------------------------------------------------------------------------------------------------
// The CQ is dead, or died of this entry.
RDMAKIT_NOINLINE void complete_no_more(HcaQp& qp, const Watch& watch, Pushed pushed) {
    Serving s(qp, watch);
    s.events |= pushed == Pushed::died ? kHcaQpFatal | kHcaCqError : kHcaQpFatal;
    enter_error(s);
    s.write_back();
    warp_sync();
}
// One lane. The old value lands where the WQE says; of 4 bytes big endian.
RDMAKIT_DEVICE void add_word(u8* word, u32 width, u64 add, u8* landing) {
    if (width == 8) {
        store_few(landing, fetch_add<Scope::sys>(reinterpret_cast<u64*>(word), add), 0, 8);
    } else {
        store_few(landing, swap_bytes(fetch_add<Scope::sys>(reinterpret_cast<u32*>(word), static_cast<u32>(add))), 0, 4);
    }
}

// The WQE at `completed`. False: not the short way, and nothing has happened.
template <class Probe>
RDMAKIT_DEVICE bool execute_near(const HcaHandle& hca, u32 index, Near& n, Fetched& fetched, Probe& probe) {
    const Task task = next_task(fetched);
    if ((task.what & kTaskAllowed) == 0) return false;
    u8* const target = reinterpret_cast<u8*>(task.to);
    u8* const source = reinterpret_cast<u8*>(task.from);
    n.settle();
    if ((task.what & kTaskAdds) != 0) {
        probe.mark(Stage::ordered);
        if (lane_id() == 0) add_word(target, task.bytes, task.low, source);
        probe.mark(Stage::signalled);
        ++n.atomics;
        n.fetched += task.bytes;
    } else {
        if (task.bytes > kFewBytes) {
            warp_move(target, source, task.bytes, n.in_order != 0);
        } else if (lane_id() == 0) {
            if ((task.what & kTaskHere) == 0) move_few(target, source, task.bytes);
            else if (task.bytes == 8 && (task.to & 7) == 0) store_relaxed<Scope::sys>(reinterpret_cast<u64*>(task.to), task.low);
            else store_few(target, task.low, task.high, task.bytes);
        }
        probe.mark(Stage::placed);
        n.sent += task.bytes;
    }
    n.unordered = true;
    const u32 counter = static_cast<u32>(n.completed) & 0xffff;
    ++n.completed;
    --n.pending;
    ++fetched.next;
    ++n.send_wqes;
    if ((task.what & kTaskSignalled) == 0) return true;
    const Cqe cqe = requester_cqe(n.qpn, task.what & 0xff, counter, task.bytes, time_ns());
    const Pushed pushed = push_cqe(*n.cq, cqe, hca.watch, n.same_gpu);
    probe.mark(Stage::completed);
    if (pushed == Pushed::yes) {
        ++n.cqes;
        n.unordered = false;  // the fence before the entry
        return true;
    }
    n.give_back();
    complete_no_more(*n.qp, hca.watch, pushed);
    n.take_up(hca, index);
    return true;
}

// ---- all of its life ----------------------------------------------------------------------------------------------------
// For a doorbell, or because it was asked to look. True if there was anything to do.
template <class Probe>
RDMAKIT_DEVICE bool serve_news(const HcaHandle& hca, u32 index, Near& n, u64 value, bool asked, bool last_chance, Probe& probe) {
    probe.mark(Stage::heard);
    Fetched fetched{Vec16{}, Task{}, 0, 0};
    const bool rang = !asked && value != n.heard && n.pending == 0 && hear_near(n, value, &fetched);
    bool near = rang;
    probe.mark(Stage::fetched);
    while (near && n.pending != 0) {
        if (fetched.next == fetched.count) fetched = fetch_blocks(n, n.pending);
        if (fetched.next == 0) understand(n, fetched);
        near = execute_near(hca, index, n, fetched, probe);
    }
    if (near) return true;
    n.give_back();
    const bool worked = serve_turn(hca, index, last_chance);
    n.take_up(hca, index);
    return worked || rang;
}

// Nothing to do, or its receiver is not ready. False: the time is up, or somebody has given up.
RDMAKIT_DEVICE bool pause_near([[maybe_unused]] const Near& n, Spin& spin, const Subject& who, const u32* left, u32 ended, Site site) {
    bool more = true;
    if (lane_id() == 0) {
#if RDMAKIT_GPU
        more = spin.pause(who, site, Seen<u32>{left, ended});
#else
        const Seen<u32> over{left, ended}, asked{n.attend, load_relaxed<Scope::sys>(n.attend)};
        const Seen<u64> rung{n.bell, n.heard};
        const HcaQp* const peer = asked.value != 0 ? n.qp->peer : nullptr;
        if (peer == nullptr) {
            more = spin.pause(who, site, over, asked, rung);
        } else {  // which has asked itself to look again: until the peer posts a receive, or fails
            const Seen<HcaQpState> state{&peer->state, load_relaxed<Scope::sys>(&peer->state)};
            const u32 record = swap_bytes(static_cast<u32>(peek(&peer->rq_consumed)) & 0xffff);
            const Seen<u32> receives{&peer->dbrec[kDbrecReceive], record};
            if (state.value != HcaQpState::error) more = spin.pause(who, site, over, state, rung, receives);
        }
#endif
    }
    return !warp_any(!more);
}

// All lanes of the one warp that serves this queue pair, until `leavers` kernels have called hca_leave and nothing is left to do.
template <class Probe> RDMAKIT_DEVICE void serve_near(const HcaHandle& hca, u32 index, Probe& probe, Site site = Site::here()) {
    if (!layout_matches(hca.qps[index].layout_version, hca.watch, "HcaQp of another layout version", site)) return;
    const u32* const left = hca.left;
    const u32 leavers = hca.leavers;
    const Subject who{"a doorbell, or the end of the kernels that ring", leavers, hca.qps[index].qpn, 0, 0};
    u32 taken = 0;  // a peer may be flushing it
    if (lane_id() == 0) taken = wait_turn(&hca.qps[index].turn, hca.watch, who) ? 1 : 0;
    if (warp_broadcast(taken) == 0) return;
    warp_sync();
    Near n;
    n.take_up(hca, index);
    bool over = false;
    for (Spin spin(hca.watch);;) {
        u32 ended = 0;
        u64 seen = 0;
        bool asked = false;
        {
            const Abreast in_flight(2);
            asked = load_relaxed<Scope::sys>(n.attend) != 0;
            ended = load_relaxed<Scope::sys>(left);
            seen = load_acquire<Scope::sys>(n.bell);
        }
        if (warp_any(seen != n.heard || asked)) {
            const u64 value = warp_broadcast(seen);
            const bool wanted = warp_any(asked);
            warp_sync();  // what lane 0 has acquired, all have
            if (serve_news(hca, index, n, value, wanted, over, probe)) {
                spin = Spin(hca.watch);
                continue;
            }
        }
        if (over) break;
        if (warp_any(ended >= leavers)) {  // what they rang is to be seen by one look more
            over = true;
            static_cast<void>(load_acquire<Scope::sys>(left));
            warp_sync();
            continue;
        }
        n.settle();
        if (!pause_near(n, spin, who, left, ended, site)) break;
    }
    n.give_back();
    end_turn(&hca.qps[index].turn);
}

}  // namespace rdmakit
