// rdmakit/hca_near.cuh — a queue pair that has a warp to itself: what the warp knows of it stays in registers from one
// doorbell to the next, and the requests that make up a put and its signal go a short way.
// Layer: hca (leans on hca_execute). All lanes call.
//
// The short way is that of WRITEs and FETCH_ADDs of one basic block with one local segment, between queue pairs that are
// well. All else goes the way of hca_execute.cuh, which alone knows errors: whatever a check here refuses is checked there
// once more. The warp keeps the queue pair's turn. Who changes what it has in registers says so by `attend`.
#pragma once
#include "hca_execute.cuh"

namespace rdmakit {

// ---- stages, for those who measure --------------------------------------------------------------------------------------
enum class Stage : u32 { heard = 0, fetched = 1, placed = 2, ordered = 3, signalled = 4, completed = 5 };
constexpr u32 kStages = 6;
struct NoProbe {
    RDMAKIT_DEVICE void mark(Stage) {}
};

// ---- keys -----------------------------------------------------------------------------------------------------------------
// The two entries that were asked for last: the host changes them only while no kernel runs.
struct NearKeys {
    KeyTable table;
    u32 pd;
    KeyEntry last, other;

    RDMAKIT_DEVICE void begin(const KeyTable& keys, u32 domain) {
        table = keys;
        pd = domain;
        last.state = other.state = KeyState::free;
    }
    RDMAKIT_DEVICE KeyCheck check(u32 key, u64 addr, u64 bytes, u32 access) {
        if (other.key == key && other.state == KeyState::live) return check_entry(other, key, addr, bytes, access, pd);
        if (last.key != key || last.state != KeyState::live) {
            if (key >> 8 >= table.count) return {KeyFault::unknown, 0};
            other = last;
            last = table.entries[key >> 8];
        }
        return check_entry(last, key, addr, bytes, access, pd);
    }
};

// ---- WQEs -----------------------------------------------------------------------------------------------------------------
// Basic blocks [first, end) as the lanes hold them: a segment each.
struct Fetched {
    u64 first, end;
    Vec16 mine;
};
constexpr u32 kFetchBlocks = kWarpThreads / kDsPerBb;

// One round trip for all of them. They were published before what said so was acquired.
RDMAKIT_DEVICE Fetched fetch_blocks(const SendRing& ring, u64 first, u64 end) {
    Fetched fetched{first, smaller(end, first + kFetchBlocks), Vec16{}};
    if constexpr (kLanes > 1) {
        const u32 lane = static_cast<u32>(lane_id());
        if (first + lane / kDsPerBb < fetched.end) fetched.mine = load_ds(ring, first, lane);
    }
    return fetched;
}
RDMAKIT_DEVICE FirstBlock block_of(const SendRing& ring, const Fetched& fetched, u64 bb) {
    FirstBlock block{};
    block.log_bbs = ring.log_bbs;
    for (u32 ds = 0; ds < kDsPerBb; ++ds) {
        if constexpr (kLanes == 1) {
            block.segment[ds] = load_ds(ring, bb, ds);
        } else {
            const int lane = static_cast<int>(bb - fetched.first) * static_cast<int>(kDsPerBb) + static_cast<int>(ds);
            for (u32 i = 0; i < 4; ++i) block.segment[ds].w[i] = warp_shuffle(fetched.mine.w[i], lane);
        }
    }
    return block;
}

// ---- what a warp knows ----------------------------------------------------------------------------------------------------
struct Near {
    HcaQp* qp;
    const u64* bell;
    u64* heard_at;
    u32* attend;
    SendRing ring;
    HcaCq* cq;
    const u32* record;
    HcaDoorbell doorbell;
    u32 qpn, sig_all;
    NearKeys keys, peer_keys;
    u32 peer_access;       // what the peer lets this one do; 0 where nothing may go the short way
    u32 in_order;
    u64 producer, completed, heard;
    bool unordered;        // something was placed behind which no fence stands yet
    u64 doorbells, ignored, send_wqes, atomics, cqes, sent, fetched;

    RDMAKIT_DEVICE void take_up(const HcaHandle& hca, u32 index) {
        qp = &hca.qps[index];
        bell = &hca.registers[index];
        heard_at = &hca.heard[index];
        attend = &hca.attend[index];
        ring = SendRing{qp->sq, qp->log_sq};
        cq = qp->send_cq;
        record = qp->dbrec + kDbrecSend;
        doorbell = qp->doorbell;
        qpn = qp->qpn;
        sig_all = qp->sq_sig_all;
        keys.begin(qp->keys, qp->pd);
        producer = qp->producer;
        completed = qp->completed;
        heard = warp_broadcast(load_relaxed<Scope::sys>(heard_at));
        unordered = true;
        doorbells = ignored = send_wqes = atomics = cqes = sent = fetched = 0;
        peer_access = in_order = 0;
        HcaQp* const peer = qp->peer;
        if (state_of(*qp) != HcaQpState::rts || peer == nullptr) return;
        const HcaQpState state = state_of(*peer);
        if ((state != HcaQpState::rtr && state != HcaQpState::rts && state != HcaQpState::sqd) || peer->peer != qp) return;
        const bool counts = qp->max_rd_atomic != 0 && peer->max_dest_rd_atomic != 0;
        peer_access = peer->access & (kKeyRemoteWrite | (counts ? kKeyRemoteAtomic : 0u));
        in_order = peer->in_order;
        peer_keys.begin(qp->peer_keys, peer->pd);
    }
    // Into memory, for hca_execute.cuh.
    RDMAKIT_DEVICE void give_back() const {
        warp_sync();
        if (lane_id() == 0) {
            store_relaxed<Scope::sys>(heard_at, heard);
            qp->producer = producer;
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
        if (unordered) order_after_payload();
        unordered = false;
    }
};

// ---- doorbells --------------------------------------------------------------------------------------------------------------
// `value` was acquired and is not what was heard last. While the blocks for which it vouches are on their way, the record and
// `attend` are looked at: whoever knew of a change and rang after it is not served as before. False: not the short way.
RDMAKIT_DEVICE bool hear_near(Near& n, u64 value, Fetched* fetched) {
    const Doorbell bell = decode_doorbell(value);
    const u64 told = widen_index(n.producer, doorbell_next_index(bell)), most = n.completed + (1ull << n.ring.log_bbs);
    if (n.peer_access == 0 || bell.qpn != n.qpn || told > most) return false;
    *fetched = fetch_blocks(n.ring, n.completed, larger(told, n.completed));
    const u32 asked = load_relaxed<Scope::sys>(n.attend);
    u64 target = n.doorbell == HcaDoorbell::dbrec ? n.producer : told;
    if (n.doorbell != HcaDoorbell::no_dbr) {
        const u32 record = swap_bytes(load_acquire<Scope::sys>(n.record));
        target = larger(target, widen_index(n.producer, record & 0xffff));
    }
    target = warp_broadcast(target);
    warp_sync();
    if (warp_any(asked != 0) || target > most) return false;
    n.heard = value;
    ++n.doorbells;
    if (target <= n.producer) ++n.ignored;
    else n.producer = target;
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
// One lane. Inline data are in the segment itself.
RDMAKIT_DEVICE void place_few(u8* to, const u8* from, u32 bytes, bool inlined, const Vec16& segment) {
    if (inlined) {
        store_few(to, segment.w[1] | (static_cast<u64>(segment.w[2]) << 32), segment.w[3], bytes);
    } else if (bytes == 8 && is_aligned<u64>(from) && is_aligned<u64>(to)) {
        store_relaxed<Scope::sys>(reinterpret_cast<u64*>(to), *reinterpret_cast<const u64*>(from));
    } else {
        move_few(to, from, bytes);
    }
}
// One lane. The old value lands where the WQE says.
RDMAKIT_DEVICE void add_word(u8* word, u32 width, u64 add, u8* landing) {
    if (width == 8) {
        const u64 old = fetch_add<Scope::sys>(reinterpret_cast<u64*>(word), add);
        store_few(landing, old, 0, 8);
    } else {
        const u32 old = fetch_add<Scope::sys>(reinterpret_cast<u32*>(word), static_cast<u32>(add));
        store_few(landing, swap_bytes(old), 0, 4);
    }
}

// The WQE at `completed`. False: not the short way, and nothing has happened.
template <class Probe>
RDMAKIT_DEVICE bool execute_near(const HcaHandle& hca, u32 index, Near& n, const Fetched& fetched, Probe& probe) {
    const FirstBlock block = block_of(n.ring, fetched, n.completed);
    if ((swap_bytes(block.segment[0].w[1]) & kMaxDs) > kDsPerBb) return false;
    const DecodedWqe wqe = decode_wqe(block, n.completed, n.producer - n.completed, n.qpn);
    const Opcode opcode = static_cast<Opcode>(wqe.opcode);
    const bool adds = (opcode == Opcode::fetch_add || opcode == Opcode::masked_fetch_add) && wqe.operands.compare_mask == 0;
    if (wqe.fault != Syndrome::none || (opcode != Opcode::write && !adds) || wqe.first_segment + 1 != wqe.ds) return false;
    const u32 needed = adds ? kKeyRemoteAtomic : kKeyRemoteWrite;
    if ((n.peer_access & needed) == 0 || wqe.bytes == 0) return false;
    const KeyCheck remote = n.peer_keys.check(wqe.rkey, wqe.raddr, wqe.bytes, needed);
    if (remote.fault != KeyFault::none || (adds && (remote.memory | wqe.raddr) % wqe.atomic_width != 0)) return false;
    const LocalSegment segment = local_segment(block, wqe, wqe.first_segment);
    const bool inlined = segment.inline_ds != 0;
    KeyCheck local{KeyFault::none, 0};
    if (!inlined) local = n.keys.check(segment.lkey, segment.addr, segment.bytes, adds ? kKeyLocalWrite : 0);
    if (local.fault != KeyFault::none) return false;

    u8* const to = reinterpret_cast<u8*>(remote.memory);
    u8* const near = reinterpret_cast<u8*>(local.memory);
    n.settle();
    if (adds) {
        probe.mark(Stage::ordered);
        if (lane_id() == 0) add_word(to, wqe.atomic_width, wqe.operands.swap_add, near);
        probe.mark(Stage::signalled);
        ++n.atomics;
        n.fetched += wqe.bytes;
    } else {
        if (wqe.bytes > kFewBytes) warp_move(to, near, wqe.bytes, n.in_order != 0);
        else if (lane_id() == 0) place_few(to, near, static_cast<u32>(wqe.bytes), inlined, load_ds(block, 0, wqe.first_segment));
        probe.mark(Stage::placed);
        n.sent += wqe.bytes;
    }
    n.unordered = true;
    n.completed = wqe.bb + 1;
    ++n.send_wqes;
    if (!wants_cqe(wqe, n.sig_all != 0)) return true;
    const Cqe cqe = requester_cqe(n.qpn, wqe.opcode, wqe.index, static_cast<u32>(wqe.bytes), time_ns());
    const Pushed pushed = push_cqe(*n.cq, cqe, hca.watch);
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
    Fetched fetched{0, 0, Vec16{}};
    const bool rang = !asked && value != n.heard && n.completed == n.producer && hear_near(n, value, &fetched);
    bool near = rang;
    probe.mark(Stage::fetched);
    while (near && n.completed != n.producer) {
        if (n.completed >= fetched.end) fetched = fetch_blocks(n.ring, n.completed, n.producer);
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
        } else {
            const u32 record = swap_bytes(static_cast<u32>(peer->rq_consumed) & 0xffff);
            more = spin.pause(who, site, over, asked, rung, Seen<u32>{&peer->dbrec[kDbrecReceive], record});
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
        // None of the three waits for another.
        const bool asked = load_relaxed<Scope::sys>(n.attend) != 0;
        const u32 ended = load_relaxed<Scope::sys>(left);
        const u64 seen = load_acquire<Scope::sys>(n.bell);
        if (warp_any(seen != n.heard || asked)) {
            const u64 value = warp_broadcast(seen);
            const bool wanted = warp_any(asked);
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
