// rdmakit/queue.cuh — the send queue protocol: reserve, write, publish in order, ring; poll the CQ; be quiet.
// Layer: queue (leans on wqe, report, atom). Every function here is called by one thread; many may call at once, from
// any warp of any block, on the same QP.
//
//   reserve   fetch_add on `reserved`, then wait until the ring has room, which only CQEs can tell
//   write     16-byte stores into the ring (post.cuh), index in the ctrl segment, wrap at 64-byte basic blocks
//   publish   wait for the turn, then release-store `ready`: WQEs become the NIC's in the order of reservation
//   submit    whoever gets the bell rings for everybody: DBR, fence, 8-byte doorbell
//
// `reserved`, `ready`, `rung` and `completed` count basic blocks, are 64 bits wide and never wrap; the wire carries
// their low 16 bits.
#pragma once
#include "report.cuh"
#include "wqe.cuh"

// For timelines of the CPU runner.
#if RDMAKIT_GPU
#define RDMAKIT_MARK(KIND, QPN, INDEX)
#else
#define RDMAKIT_MARK(KIND, QPN, INDEX) cpu::mark(cpu::KIND, QPN, INDEX)
#endif

namespace rdmakit {

struct CqHandle {
    u32 layout_version;
    u32 cqn;
    u8* entries;       // CQE64s; in a 128-byte CQ, at offset 64 of each entry
    u32* dbrec;        // [kDbrecSetCi], [kDbrecArm]
    u32 log_entries;
    u32 log_stride;    // 6 or 7
    u32 collapsed;     // every CQE lands in entry 0
    u32 reserved;
};

// Shared by all that post to one QP; in memory of the GPU that posts. A word a line: they are hot for different warps.
struct SqState {
    alignas(128) u64 reserved;
    alignas(128) u64 ready;
    alignas(128) u64 rung;
    alignas(128) u64 completed;
    alignas(128) u32 bell;       // 1 while somebody rings
    alignas(128) u32 cq_lock;    // 1 while somebody drains the CQ
    u32 error;                   // kErrorFlag | vendor syndrome << 8 | syndrome of the first error CQE
    u64 consumer;                // CQ consumer index, guarded by cq_lock
    u64 error_index;
    u64 doorbells, cqes;         // statistics, guarded by bell and cq_lock
};
constexpr u32 kErrorFlag = 1u << 31;
constexpr u32 kErrorClaimed = 1u << 30;  // somebody is writing the error down

enum class DoorbellDialect : u32 { next_index = 0, last_wqe = 1 };

struct QpHandle {
    u32 layout_version;
    u32 qpn;
    u8* sq;
    u32* dbrec;          // the send word of the doorbell record
    u64* doorbell;       // the register in the UAR page
    SqState* state;
    u64 sink_address;    // 8 bytes where atomics leave the old value
    u32 sink_lkey;
    u32 log_sq;          // ring size in basic blocks
    DoorbellDialect dialect;
    u32 batch;           // basic blocks that may lie published but not rung while others still write; 0: ring each time
    u32 peer, channel;   // for reports
    u32 same_gpu;        // 1: its HCA is warps of the GPU that posts (hca_engine.cuh), and gpu scope reaches it. 0: a NIC, or unknown
    u32 reserved;
    CqHandle cq;
    Watch watch;
};

constexpr u64 kNoSlot = ~0ull;

RDMAKIT_DEVICE u64 sq_size(const QpHandle& qp) { return 1ull << qp.log_sq; }
RDMAKIT_DEVICE u8* sq_slot(const QpHandle& qp, u64 index) { return qp.sq + (index & (sq_size(qp) - 1)) * kWqebb; }
RDMAKIT_DEVICE Subject about(const QpHandle& qp, const char* what, u64 expected) {
    return Subject{what, expected, qp.qpn, qp.peer, qp.channel};
}
RDMAKIT_DEVICE bool check_handle(const QpHandle& qp, Site site = Site::here()) {
    return layout_matches(qp.layout_version, qp.watch, "QpHandle of another layout version", site) &&
           layout_matches(qp.cq.layout_version, qp.watch, "CqHandle of another layout version", site);
}

// In the dialect that names the last WQE, that WQE must be one basic block: put a NOP behind a longer one.
RDMAKIT_DEVICE u64 doorbell_value(const QpHandle& qp, u64 next) {
    if (qp.dialect == DoorbellDialect::next_index) return doorbell_next(qp.qpn, next);
    return *reinterpret_cast<const u64*>(sq_slot(qp, next - 1));  // published, hence seen with `ready`
}

// ---- submit: one bell ringer at a time, and nobody waits for it ---------------------------------------------------
// Who finds the bell taken leaves: the ringer looks again after putting it back. A failed attempt still hands its `ready`
// on to the ringer, who puts the bell back by an exchange, since that reads the attempt. What the ringer has to know of
// others' work it learns by its second look at `ready`.

// How far S must reach depends on what the HCA is: `same_gpu`.
template <Scope S> RDMAKIT_DEVICE void tell(const QpHandle& qp, u64 next, u64 bell) {
    fence<S>();  // all WQEs below `next`, and the payload they point to, before the record
    store_relaxed<Scope::sys>(qp.dbrec, swap_bytes(static_cast<u32>(next & 0xffff)));
    RDMAKIT_MARK(kMarkRecord, qp.qpn, next);
    fence<S>();  // the record before the register: the NIC may read it as soon as it is rung
    mmio_store(qp.doorbell, bell);
    RDMAKIT_MARK(kMarkDoorbell, qp.qpn, next);
}
// Holder of the bell, and of everything below `next` it knows.
RDMAKIT_DEVICE void ring(const QpHandle& qp, u64 next) {
    SqState& s = *qp.state;
    // Read before the record is written: once that is there an earlier bell may make the NIC execute the last WQE,
    // and its slot be filled anew.
    const u64 bell = doorbell_value(qp, next);
    if (qp.same_gpu != 0) tell<Scope::gpu>(qp, next, bell);
    else tell<Scope::sys>(qp, next, bell);
    store_relaxed<Scope::gpu>(&s.rung, next);
    s.doorbells += 1;
}
RDMAKIT_DEVICE void submit(const QpHandle& qp) {
    SqState& s = *qp.state;
    for (;;) {
        const u64 ready = load_relaxed<Scope::gpu>(&s.ready);
        if (ready <= load_relaxed<Scope::gpu>(&s.rung)) return;
        const bool taken = exchange_release<Scope::gpu>(&s.bell, 1u) != 0;
        if (!holds(!taken)) return;
        const u64 next = load_acquire<Scope::gpu>(&s.ready);
        if (next > load_relaxed<Scope::gpu>(&s.rung)) ring(qp, next);
        exchange<Scope::gpu>(&s.bell, 0u);
    }
}

// ---- completions ---------------------------------------------------------------------------------------------------
// The tail of a CQE in one 4-byte read: {wqe_counter, signature, op_own}, so none of them can be newer than another.
struct CqeTail {
    u32 raw;
    RDMAKIT_DEVICE u32 op_own() const { return raw >> 24; }
    RDMAKIT_DEVICE u32 opcode() const { return raw >> 28; }
    RDMAKIT_DEVICE u16 counter() const { return swap_bytes(static_cast<u16>(raw & 0xffff)); }
    RDMAKIT_DEVICE bool is_error() const {
        return opcode() == static_cast<u32>(CqeOpcode::requester_error) ||
               opcode() == static_cast<u32>(CqeOpcode::responder_error);
    }
};
RDMAKIT_DEVICE u8* cqe_address(const CqHandle& cq, u64 consumer) {
    const u64 slot = cq.collapsed != 0 ? 0 : consumer & ((1ull << cq.log_entries) - 1);
    return cq.entries + (slot << cq.log_stride) + (1ull << cq.log_stride) - kCqe;
}
RDMAKIT_DEVICE const u32* cqe_tail_address(const CqHandle& cq, u64 consumer) {
    return reinterpret_cast<const u32*>(cqe_address(cq, consumer) + 60);
}

// The basic block after the WQE that a CQE names. The CQE gives the first block only; the WQE's own size, still in the
// ring because its slot is not free before we say so, gives the rest.
RDMAKIT_DEVICE u64 completed_by(const QpHandle& qp, u64 completed, u16 counter) {
    const u64 index = completed + static_cast<u64>(static_cast<i64>(static_cast<i16>(counter - static_cast<u16>(completed))));
    const u32 qpn_ds = swap_bytes(reinterpret_cast<const u32*>(sq_slot(qp, index))[1]);
    return index + wqebbs(qpn_ds & kMaxDs);
}
RDMAKIT_DEVICE void note_error(const QpHandle& qp, u64 consumer, u64 completed, CqeTail tail) {
    const auto* cqe = reinterpret_cast<const u32*>(cqe_address(qp.cq, consumer));
    // Bytes 52..55: hw syndrome, its type, vendor, syndrome. The one entry of a collapsed CQ may be written over as we read.
    const u32 word = load_relaxed<Scope::sys>(&cqe[13]);
    const u32 error = kErrorFlag | ((word >> 8) & 0xff00) | (word >> 24);
    const bool first = compare_swap<Scope::gpu>(&qp.state->error, 0u, kErrorClaimed) == 0;
    if (!holds(first)) return;  // the first one counts
    qp.state->error_index = completed + static_cast<u16>(tail.counter() - static_cast<u16>(completed));
    store_release<Scope::gpu>(&qp.state->error, error);
}

// Holder of cq_lock. The one entry names the last WQE that is complete. Without the lock the slot of that WQE could be another's
// by the time that its size is read there.
RDMAKIT_DEVICE u64 poll_collapsed(const QpHandle& qp, u64 completed, Seen<u32>* more) {
    const CqeTail tail{load_acquire<Scope::sys>(cqe_tail_address(qp.cq, 0))};
    *more = {cqe_tail_address(qp.cq, 0), tail.raw};
    if (tail.opcode() == static_cast<u32>(CqeOpcode::invalid)) return completed;
    if (tail.is_error()) {
        note_error(qp, 0, completed, tail);
        return completed;
    }
    const bool newer = static_cast<i16>(tail.counter() - static_cast<u16>(completed)) >= 0;
    if (!holds(newer)) return completed;
    const u64 now = completed_by(qp, completed, tail.counter());
    store_release<Scope::gpu>(&qp.state->completed, now);  // slots below are free, and this CQE has been read
    return now;
}

// Takes what the CQ holds; returns the basic blocks completed so far. Never waits. *more says which word will change
// before there is more to take: the next CQE's tail, or the lock while somebody else is at it.
RDMAKIT_DEVICE u64 poll_cq(const QpHandle& qp, Seen<u32>* more) {
    SqState& s = *qp.state;
    const bool locked = load_relaxed<Scope::gpu>(&s.cq_lock) != 0 || exchange_acquire<Scope::gpu>(&s.cq_lock, 1u) != 0;
    if (!holds(!locked)) {
        *more = {&s.cq_lock, 1u};
        return load_acquire<Scope::gpu>(&s.completed);
    }
    u64 completed = load_relaxed<Scope::gpu>(&s.completed);
    if (qp.cq.collapsed != 0) {
        completed = poll_collapsed(qp, completed, more);
        store_release<Scope::gpu>(&s.cq_lock, 0u);
        return completed;
    }
    u64 ci = s.consumer;
    const u64 before = ci;
    for (;; ++ci) {
        const CqeTail tail{load_acquire<Scope::sys>(cqe_tail_address(qp.cq, ci))};
        *more = {cqe_tail_address(qp.cq, ci), tail.raw};
        if (!holds(cqe_ready(tail.op_own(), ci, qp.cq.log_entries))) break;
        if (tail.is_error()) note_error(qp, ci, completed, tail);
        completed = completed_by(qp, completed, tail.counter());
    }
    if (ci != before) {
        s.consumer = ci;
        s.cqes += ci - before;
        store_relaxed<Scope::sys>(&qp.cq.dbrec[kDbrecSetCi], swap_bytes(static_cast<u32>(ci & 0xffffff)));
        store_release<Scope::gpu>(&s.completed, completed);  // slots below are free, and their CQEs have been read
    }
    store_release<Scope::gpu>(&s.cq_lock, 0u);
    return completed;
}
RDMAKIT_DEVICE u64 poll_cq(const QpHandle& qp) {
    Seen<u32> more{};
    return poll_cq(qp, &more);
}
RDMAKIT_DEVICE Status completion_error(const QpHandle& qp, const Subject& who, Site site) {
    const u32 error = load_acquire<Scope::gpu>(&qp.state->error);
    return fail(qp.watch, Status::completion_error, who, 0, qp.state->error_index, 0,
                error & 0xff, (error >> 8) & 0xff, site);
}

// Waits until at least `until` basic blocks are complete. Only a CQE can tell, so a WQE at or behind `until` must have asked
// for one (kCqUpdate): the last of every reservation, as a rule. Rings for what lies published first: a wait for the
// completion of a WQE that nobody has rung for would be for ever.
RDMAKIT_DEVICE Status wait_completed(const QpHandle& qp, u64 until, const char* what, Site site = Site::here()) {
    SqState& s = *qp.state;
    for (Spin spin(qp.watch);;) {
        const u64 ready = load_relaxed<Scope::gpu>(&s.ready);
        submit(qp);
        Seen<u32> more{};
        const u64 completed = poll_cq(qp, &more);
        // An error comes first: flushed WQEs complete too, and would pass for done.
        const bool failed = (load_relaxed<Scope::gpu>(&s.error) & kErrorFlag) != 0;
        if (!holds(!failed)) return completion_error(qp, about(qp, what, until), site);
        if (holds(completed >= until)) return Status::ok;
        if (!spin.pause(about(qp, what, until), site, Seen<u64>{&s.completed, completed}, more, Seen<u64>{&s.ready, ready})) {
            return spin.status();
        }
    }
}

// ---- reserve, publish ----------------------------------------------------------------------------------------------
// Returns the index of the first of `bbs` basic blocks, or kNoSlot after a reported failure.
RDMAKIT_DEVICE u64 reserve(const QpHandle& qp, u32 bbs, Site site = Site::here()) {
    if (!holds(bbs <= sq_size(qp))) {  // before anything is taken: a hole in the order would stop everybody
        fail(qp.watch, Status::bad_argument, about(qp, "a reservation larger than the send queue", sq_size(qp)), bbs, 0, 0,
             0, 0, site);
        return kNoSlot;
    }
    const u64 base = fetch_add<Scope::gpu>(&qp.state->reserved, static_cast<u64>(bbs));
    RDMAKIT_MARK(kMarkReserved, qp.qpn, base);
    const u64 end = base + bbs;
    const u64 room = load_acquire<Scope::gpu>(&qp.state->completed) + sq_size(qp);
    if (holds(end <= room)) return base;
    return wait_completed(qp, end - sq_size(qp), "room in the send queue", site) == Status::ok ? base : kNoSlot;
}

// Hands [base, base + bbs) to the NIC's side of the ring, in order of reservation, and rings unless batching says that
// a later reservation, already made, will. Who has nobody behind it rings before it hands the turn on: then nobody has
// to be told what is ready first, which would cost a fence and a look more.
RDMAKIT_DEVICE Status publish(const QpHandle& qp, u64 base, u32 bbs, Site site = Site::here()) {
    SqState& s = *qp.state;
    const u64 end = base + bbs;
    const bool others_follow = load_relaxed<Scope::gpu>(&s.reserved) != end;
    u64 turn = 0;
    const Status status = wait_until<Scope::gpu>(&s.ready, [base](u64 ready) { return ready == base; }, qp.watch,
                                                 about(qp, "the turn to publish", base), &turn, site);
    if (status != Status::ok) return status;
    if (!others_follow) {
        const bool taken = compare_swap<Scope::gpu>(&s.bell, 0u, 1u) != 0;  // the first fence of ring acquires
        if (holds(!taken)) {
            RDMAKIT_MARK(kMarkPublished, qp.qpn, end);
            ring(qp, end);
            store_relaxed<Scope::gpu>(&s.ready, end);  // behind the fences of ring
            exchange<Scope::gpu>(&s.bell, 0u);
            submit(qp);
            return Status::ok;
        }
    }
    store_release<Scope::gpu>(&s.ready, end);
    RDMAKIT_MARK(kMarkPublished, qp.qpn, end);
    const bool batch_full = qp.batch == 0 || base / qp.batch != end / qp.batch;
    if (!others_follow || batch_full) submit(qp);
    return Status::ok;
}

// Everything posted before this call is complete.
RDMAKIT_DEVICE Status quiet(const QpHandle& qp, Site site = Site::here()) {
    return wait_completed(qp, load_relaxed<Scope::gpu>(&qp.state->reserved), "completion of all posted work", site);
}

}  // namespace rdmakit
