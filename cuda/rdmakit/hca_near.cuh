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
// A live key of the right domain, as the host registered it: it changes keys only while no kernel runs.
struct NearKey {
    u64 addr, len, base;
    u32 key, access;  // key 0 is none
};
// The two that were asked for last.
struct NearKeys {
    KeyTable table;
    u32 pd;
    NearKey one, other;

    RDMAKIT_DEVICE void begin(const KeyTable& keys, u32 domain) {
        table = keys;
        pd = domain;
        one = other = NearKey{};
    }
    // Where the bytes lie, in *memory. False: not here, or not allowed.
    RDMAKIT_DEVICE bool find(u32 key, u64 addr, u64 bytes, u32 access, u64* memory) {
        if (key != one.key && key != other.key && !learn(key)) return false;
        const bool first = key == one.key;
        const u64 at = addr - (first ? one.addr : other.addr), len = first ? one.len : other.len;
        *memory = (first ? one.base : other.base) + at;
        return (access & ~(first ? one.access : other.access)) == 0 && bytes <= len && at <= len - bytes;
    }

  private:
    RDMAKIT_DEVICE bool learn(u32 key) {
        if (key >> 8 >= table.count) return false;
        const KeyEntry entry = table.entries[key >> 8];
        if (entry.state != KeyState::live || entry.key != key || entry.pd != pd || key == 0) return false;
        other = one;
        one = NearKey{entry.addr, entry.len, entry.base, key, entry.access};
        return true;
    }
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
    NearKeys keys, peer_keys;
    u32 peer_access;       // what the peer lets this one do; 0 where nothing may go the short way
    u32 in_order;
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
        keys.begin(qp->keys, qp->pd);
        completed = qp->completed;
        pending = static_cast<u32>(qp->producer - completed);
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
        if (unordered) order_after_payload();
        unordered = false;
    }
};

// ---- WQEs -----------------------------------------------------------------------------------------------------------------
// Basic blocks from `completed` on as the lanes hold them, a segment each: `count` of them, of which `next` have been executed.
struct Fetched {
    Vec16 mine;
    u32 next, count;
};
constexpr u32 kFetchBlocks = kWarpThreads / kDsPerBb;

// One round trip for all of them. They were published before what said so was acquired.
RDMAKIT_DEVICE Fetched fetch_blocks(const Near& n, u32 published) {
    Fetched fetched{Vec16{}, 0, smaller(published, kFetchBlocks)};
    if constexpr (kLanes > 1) {
        const u32 lane = static_cast<u32>(lane_id());
        const u32 slot = (static_cast<u32>(n.completed) * kDsPerBb + lane) & (n.entries() * kDsPerBb - 1);
        if (lane < fetched.count * kDsPerBb) fetched.mine = *reinterpret_cast<const Vec16*>(n.sq + slot * kDs);
    }
    return fetched;
}
// The next one's segments, in every lane.
RDMAKIT_DEVICE void show_block(const Near& n, const Fetched& fetched, Vec16 (&segments)[kDsPerBb]) {
    for (u32 ds = 0; ds < kDsPerBb; ++ds) {
        if constexpr (kLanes == 1) {
            segments[ds] = load_ds(SendRing{n.sq, n.log_sq}, n.completed, ds);
        } else {
            for (u32 i = 0; i < 4; ++i)
                segments[ds].w[i] = warp_shuffle(fetched.mine.w[i], static_cast<int>(fetched.next * kDsPerBb + ds));
        }
    }
}

// A request of those that may go the short way.
struct Request {
    bool known, adds, inlined, signalled;
    u32 bytes;
    u64 raddr, laddr, add;
    u32 rkey, lkey, opcode;
    Vec16 data;  // the local segment, as it lies in memory
};
// As decode_wqe (hca_wqe.cuh) has it, but strict: what is unusual is not known here.
RDMAKIT_DEVICE Request read_request(const Vec16 (&v)[kDsPerBb], u32 index, u32 qpn, bool sig_all) {
    constexpr u32 kWrite = static_cast<u32>(Opcode::write), kAdd = static_cast<u32>(Opcode::fetch_add);
    constexpr u32 kMasked = static_cast<u32>(Opcode::masked_fetch_add);
    constexpr u32 kMasked4 = (kOpmodMasked4 << 24) | kMasked, kMasked8 = (kOpmodMasked8 << 24) | kMasked;
    const u32 kind = swap_bytes(v[0].w[0]) ^ ((index & 0xffff) << 8), low_boundary = v[2].w[2] | v[2].w[3];
    const bool narrow = kind == kMasked4 && v[2].w[1] == 0;
    const bool adds = kind == kAdd || (kind == kMasked8 && low_boundary == 0) || narrow;
    Request r{};
    r.adds = adds;
    r.opcode = kind & 0xff;
    r.data = adds ? v[3] : v[2];
    const u32 count = swap_bytes(r.data.w[0]), most = adds ? (narrow ? 4u : 8u) : kMaxWrite;
    r.inlined = (count & kInlineFlag) != 0;
    r.bytes = count & ~kInlineFlag;
    r.raddr = word64(v[1], 0);
    r.rkey = swap_bytes(v[1].w[2]);
    r.laddr = word64(r.data, 2);
    r.lkey = swap_bytes(r.data.w[1]);
    r.add = narrow ? swap_bytes(v[2].w[0]) : word64(v[2], 0);
    r.signalled = sig_all || ((v[0].w[2] >> 24) & (3u << 2)) == kCqUpdate;
    const bool fits = r.inlined ? !adds && r.bytes <= 12 : r.bytes <= most;
    const bool aligned = !adds || (r.bytes == most && (r.raddr & (most - 1)) == 0);
    r.known = (kind == kWrite || adds) && v[0].w[1] == swap_bytes((qpn << 8) | (adds ? 4u : 3u)) && r.bytes != 0 && fits && aligned;
    return r;
}

// ---- doorbells --------------------------------------------------------------------------------------------------------------
// `value` was acquired and is not what was heard last; nothing is pending. While the blocks for which it vouches are on their
// way, the record and `attend` are looked at: whoever knew of a change and rang after it is not served as before. False: not
// the short way.
RDMAKIT_DEVICE bool hear_near(Near& n, u64 value, Fetched* fetched) {
    const Doorbell bell = decode_doorbell(value);
    const u32 done = static_cast<u32>(n.completed), told = (doorbell_next_index(bell) - done) & 0xffff;
    if (n.peer_access == 0 || bell.qpn != n.qpn || told > n.entries()) return false;
    *fetched = fetch_blocks(n, told);
    u32 pending = told, asked = 0;
    {
        const Abreast in_flight(1);
        asked = load_relaxed<Scope::sys>(n.attend);
        if (n.doorbell != HcaDoorbell::no_dbr) {
            const u32 recorded = (swap_bytes(load_acquire<Scope::sys>(n.record)) - done) & 0xffff;
            pending = n.doorbell == HcaDoorbell::dbrec ? recorded : larger(told, recorded);
        }
    }
    pending = warp_broadcast(pending);
    warp_sync();
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
    Vec16 segments[kDsPerBb];
    show_block(n, fetched, segments);
    const u32 counter = static_cast<u32>(n.completed) & 0xffff;
    const Request r = read_request(segments, counter, n.qpn, n.sig_all != 0);
    const u32 needed = r.adds ? kKeyRemoteAtomic : kKeyRemoteWrite;
    if (!r.known || (n.peer_access & needed) == 0) return false;
    u64 from = 0, to = 0;
    if (!r.inlined && !n.keys.find(r.lkey, r.laddr, r.bytes, r.adds ? kKeyLocalWrite : 0, &from)) return false;
    const bool word = r.bytes == 8 && !r.adds && !r.inlined && (from & 7) == 0;
    u64 value = r.data.w[1] | (static_cast<u64>(r.data.w[2]) << 32);
    if (word && lane_id() == 0) value = *reinterpret_cast<const u64*>(from);  // on its way while the other key is looked at
    if (!n.peer_keys.find(r.rkey, r.raddr, r.bytes, needed, &to) || (r.adds && (to & (r.bytes - 1)) != 0)) return false;

    u8* const target = reinterpret_cast<u8*>(to);
    u8* const source = reinterpret_cast<u8*>(from);
    n.settle();
    if (r.adds) {
        probe.mark(Stage::ordered);
        if (lane_id() == 0) add_word(target, r.bytes, r.add, source);
        probe.mark(Stage::signalled);
        ++n.atomics;
        n.fetched += r.bytes;
    } else {
        if (r.bytes > kFewBytes) {
            warp_move(target, source, r.bytes, n.in_order != 0);
        } else if (lane_id() == 0) {
            if (word && (to & 7) == 0) store_relaxed<Scope::sys>(reinterpret_cast<u64*>(to), value);
            else if (word || r.inlined) store_few(target, value, r.data.w[3], r.bytes);
            else move_few(target, source, r.bytes);
        }
        probe.mark(Stage::placed);
        n.sent += r.bytes;
    }
    n.unordered = true;
    ++n.completed;
    --n.pending;
    ++fetched.next;
    ++n.send_wqes;
    if (!r.signalled) return true;
    const Pushed pushed = push_cqe(*n.cq, requester_cqe(n.qpn, r.opcode, counter, r.bytes, time_ns()), hca.watch);
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
    Fetched fetched{Vec16{}, 0, 0};
    const bool rang = !asked && value != n.heard && n.pending == 0 && hear_near(n, value, &fetched);
    bool near = rang;
    probe.mark(Stage::fetched);
    while (near && n.pending != 0) {
        if (fetched.next == fetched.count) fetched = fetch_blocks(n, n.pending);
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
