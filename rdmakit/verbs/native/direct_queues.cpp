#include "direct_queues.hpp"

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "rdmakit/cpu_dma.cuh"

namespace rdmakit::verbs {
namespace {

constexpr u32 kFlagFence = 1, kFlagSignalled = 2, kFlagSolicited = 4, kFlagInline = 8;  // IBV_SEND_*
// By IBV_WR_*, which count from 0.
constexpr Opcode kOpcodes[] = {Opcode::write,    Opcode::write_imm, Opcode::send,     Opcode::send_imm,
                               Opcode::read,     Opcode::cmp_swap,  Opcode::fetch_add};

bool has_imm(Opcode opcode) { return opcode == Opcode::write_imm || opcode == Opcode::send_imm; }
bool is_send(Opcode opcode) { return opcode == Opcode::send || opcode == Opcode::send_imm; }
bool is_atomic(Opcode opcode) { return opcode == Opcode::cmp_swap || opcode == Opcode::fetch_add; }

// enum ibv_wc_opcode, enum ibv_wc_flags
constexpr u32 kWcSend = 0, kWcWrite = 1, kWcRead = 2, kWcCmpSwap = 3, kWcFetchAdd = 4, kWcRecv = 128, kWcRecvWriteImm = 129;
constexpr u32 kWcGrh = 1, kWcWithImm = 2;

// enum ibv_wc_status
u32 status_of(Syndrome syndrome) {
    switch (syndrome) {
        case Syndrome::local_length: return 1;
        case Syndrome::local_qp_op: return 2;
        case Syndrome::local_protection: return 4;
        case Syndrome::flushed: return 5;
        case Syndrome::mw_bind: return 6;
        case Syndrome::bad_response: return 7;
        case Syndrome::local_access: return 8;
        case Syndrome::remote_invalid_request: return 9;
        case Syndrome::remote_access: return 10;
        case Syndrome::remote_op: return 11;
        case Syndrome::transport_retry_exceeded: return 12;
        case Syndrome::rnr_retry_exceeded: return 13;
        case Syndrome::remote_aborted: return 16;
        default: return 21;
    }
}

u32 sent_as(u32 opcode) {
    switch (static_cast<Opcode>(opcode)) {
        case Opcode::write:
        case Opcode::write_imm: return kWcWrite;
        case Opcode::read: return kWcRead;
        case Opcode::cmp_swap: return kWcCmpSwap;
        case Opcode::fetch_add: return kWcFetchAdd;
        default: return kWcSend;
    }
}

// As libmlx5 says it at this end, too.
u32 sent_flags(u32 opcode) { return has_imm(static_cast<Opcode>(opcode)) ? kWcWithImm : 0; }

// The index nearest to `base`, not below it, whose low 16 bits are these.
u64 widen(u32 counter, u64 base) { return base + ((counter - static_cast<u32>(base)) & 0xffff); }

// Payload that the device left in the CQE: to where the WQE's data segment says.
void scatter(const u8* segment, const u8* entry, u32 op_own, u32 bytes) {
    const bool wide = op_own & kCqeScatter64;
    DataSeg to;
    std::memcpy(&to, segment, sizeof to);
    const u32 room = swap_bytes(to.byte_count), most = wide ? 64 : 32;
    const u32 count = bytes < room ? bytes : room;
    std::memcpy(reinterpret_cast<void*>(swap_bytes(to.addr)), wide ? entry - kCqe : entry, count < most ? count : most);
}

// Fields are read where they lie and rows are written where they go: a copy of either costs more than the rest.
u32 field(const u8* at) {
    u32 word;
    std::memcpy(&word, at, sizeof word);
    return swap_bytes(word);
}

// The last 8 bytes of a CQE in one read: sop_drop_qpn, wqe_counter, signature, op_own.
constexpr u32 kTail = offsetof(Cqe, sop_drop_qpn);
static_assert(kTail % 8 == 0 && kTail + 8 == kCqe, "one read has them all");
u64 tail_of(const u8* entry) { return __atomic_load_n(reinterpret_cast<const u64*>(entry + kTail), __ATOMIC_RELAXED); }
u32 op_own_of(u64 tail) { return static_cast<u32>(tail >> 56); }
u32 opcode_of(u64 tail) { return tail & 0xff; }
u32 qpn_of(u64 tail) { return swap_bytes(static_cast<u32>(tail)) & 0xffffff; }
u32 counter_of(u64 tail) { return swap_bytes(static_cast<u16>(tail >> 32)); }

// What tails have in common that say the same: all but the counter, the signature and the solicited bit.
constexpr u64 kAlike = u64{0xff & ~kSolicited} << 56 | 0xffffffff;

// A WRITE or a SEND that went well, of which a CQE tells nothing that its tail does not.
bool is_plain(u64 tail) {
    const u32 what = op_own_of(tail) & ~(kSolicited | 1);
    return what == static_cast<u32>(CqeOpcode::requester) << 4 && sent_as(opcode_of(tail)) < kWcRead;
}

// Rows of CQEs that are plain and alike, in which nothing but wr_ids is new. A row is three stores: one for each field
// costs more than the lines of the CQEs.
class PlainRows {
  public:
    PlainRows(const DirectQp& qp, u64 tail)
        : wr_ids_(qp.wr_ids.data()), mask_(qp.rings.sq_blocks - 1), opcode_(u64{sent_as(opcode_of(tail))} << 32),
          middle_{0, u64{qpn_of(tail)} << 32}, end_{u64{sent_flags(opcode_of(tail))} << 32, 0} {}
    // Of the WQE at that index, whose low bits a CQE has.
    void put(u32 index, Wc* row) const {
        const Pair begin = {wr_ids_[index & mask_], opcode_};  // a new one: what was stored in parts is slow to load as a whole
        u8* const to = reinterpret_cast<u8*>(row);
        std::memcpy(to, &begin, sizeof begin);
        std::memcpy(to + sizeof begin, &middle_, sizeof middle_);
        std::memcpy(to + 2 * sizeof begin, &end_, sizeof end_);
    }

  private:
    using Pair = u64 __attribute__((vector_size(16)));
    static_assert(sizeof(Wc) == 3 * sizeof(Pair) && offsetof(Wc, opcode) == 12 && offsetof(Wc, qp_num) == 28 &&
                  offsetof(Wc, wc_flags) == 36, "where the parts have them");
    const u64* const wr_ids_;
    const u32 mask_;
    const u64 opcode_;
    const Pair middle_, end_;
};

// Rows of as many CQEs, `most` at most, as are like the first; how many.
u32 take_run(DirectQp& qp, const u8* entry, u32 stride, u32 most, Wc* row) {
    u64 tail = tail_of(entry);
    const u64 alike = tail & kAlike;
    const PlainRows rows(qp, tail);
    u32 count = 0, counter;
    do {
        counter = counter_of(tail);
        rows.put(counter, row + count);
        if (++count == most) break;
        tail = tail_of(entry += stride);
    } while ((tail & kAlike) == alike);
    qp.done = widen(counter, qp.done) + qp.blocks[counter & (qp.rings.sq_blocks - 1)];
    return count;
}

// The same by a look at the last of them alone, since a CQE is a line that the device has just written. Where all that is
// outstanding of a queue pair completes by one CQE a block, `count` CQEs of which the last is of its `count`th block are all
// its own: they come in the order of its WQEs, and after one that failed none goes well (IBTA vol. 1, 10.3.1). `tail`: of
// the first, which is plain. False: it is not so, or not all of them are there.
bool take_known(DirectQp& qp, u64 tail, const u8* last, u64 last_at, u32 log, u32 count, Wc* row) {
    const u64 found = tail_of(last);
    constexpr u64 kSame = kAlike & ~(u64{1} << 56);  // but for the owner: it may lie in the next lap
    if (!cqe_ready(op_own_of(found), last_at, log) || (found & kSame) != (tail & kSame)) return false;
    if (widen(counter_of(found), qp.done) != qp.done + count - 1) return false;
    const PlainRows rows(qp, tail);
    for (u32 i = 0; i < count; ++i) rows.put(static_cast<u32>(qp.done) + i, row + i);
    qp.done += count;
    return true;
}

// A CQE of the send queue. In one that reports an error nothing but the counter is read.
void take_sent(DirectQp& qp, const u8* entry, u64 tail, Wc& wc) {
    const u64 index = widen(counter_of(tail), qp.done);
    const u32 slot = static_cast<u32>(index) & (qp.rings.sq_blocks - 1), op_own = op_own_of(tail);
    wc.wr_id = qp.wr_ids[slot];
    qp.done = index + qp.blocks[slot];
    if (static_cast<CqeOpcode>(op_own >> 4) != CqeOpcode::requester) return;
    wc.opcode = sent_as(opcode_of(tail));
    wc.wc_flags = sent_flags(opcode_of(tail));
    if (wc.opcode < kWcRead) return;
    wc.byte_len = wc.opcode == kWcRead ? field(entry + offsetof(Cqe, byte_count)) : 8;
    if (op_own & (kCqeScatter32 | kCqeScatter64)) {
        const u8* const wqe = static_cast<const u8*>(qp.rings.sq) + u64{slot} * kWqebb;
        scatter(wqe + (wc.opcode == kWcRead ? 2 : 3) * kDs, entry, op_own, wc.byte_len);
    }
}

void take_received(DirectQp& qp, const u8* entry, u64 tail, Wc& wc) {
    const u64 slot = widen(counter_of(tail), qp.received) & (qp.rings.rq_count - 1);
    const u32 op_own = op_own_of(tail);
    const CqeOpcode what = static_cast<CqeOpcode>(op_own >> 4);
    wc.wr_id = qp.receive_ids[slot];
    ++qp.received;
    if (what == CqeOpcode::responder_error) return;
    const bool imm = what == CqeOpcode::responder_write_imm || what == CqeOpcode::responder_send_imm;
    const u32 source = field(entry + offsetof(Cqe, flags_rqpn));
    wc.opcode = what == CqeOpcode::responder_write_imm ? kWcRecvWriteImm : kWcRecv;
    wc.byte_len = field(entry + offsetof(Cqe, byte_count));
    wc.src_qp = source & 0xffffff;
    wc.wc_flags = (imm ? kWcWithImm : 0) | (source >> 28 & 3 ? kWcGrh : 0);
    if (imm) std::memcpy(&wc.imm_data, entry + offsetof(Cqe, imm_inval_pkey), sizeof wc.imm_data);
    if (op_own & (kCqeScatter32 | kCqeScatter64)) {
        scatter(static_cast<const u8*>(qp.rings.rq) + slot * qp.rings.rq_stride, entry, op_own, wc.byte_len);
    }
}

}  // namespace

// ---- work requests
bool DirectQp::begin(const Mlx5View& found, u32 number, u32 inlined, bool all) {
    rings = found;
    qpn = number;
    max_inline = inlined;
    signal_all = all;
    wr_ids.assign(found.sq_blocks, 0);
    blocks.assign(found.sq_blocks, 0);
    receive_ids.assign(found.rq_count, 0);
    return found.dbrec[kDbrecReceive] == 0 && found.dbrec[kDbrecSend] == 0;
}

void DirectQp::put(u64 ds, const Vec16* segments, u32 count) {
    const u64 mask = u64{rings.sq_blocks} * kDsPerBb - 1;
    for (u32 i = 0; i < count; ++i) std::memcpy(static_cast<u8*>(rings.sq) + ((ds + i) & mask) * kDs, segments + i, kDs);
}

// The WQE at `posted`; its basic blocks, or 0: it cannot be built.
u32 DirectQp::write(const BatchSend& row, Vec16& ctrl) {
    const Opcode opcode = kOpcodes[row.opcode];
    Vec16 segments[kMaxDs + 1];
    u32 ds = 1;
    if (!is_send(opcode)) segments[ds++] = remote_segment(row.remote_address, row.rkey);
    if (opcode == Opcode::cmp_swap) segments[ds++] = atomic_segment(row.swap, row.compare_add);
    if (opcode == Opcode::fetch_add) segments[ds++] = atomic_segment(row.compare_add, 0);
    if (row.length != 0 && row.flags & kFlagInline) {
        if (row.length > max_inline || is_atomic(opcode) || opcode == Opcode::read) return 0;
        const u32 all = ds + ceil_div(row.length + u32{sizeof(InlineSeg)}, kDs), head = swap_bytes(row.length | kInlineFlag);
        if (all > kMaxDs) return 0;
        segments[all - 1] = Vec16{};
        u8* const to = reinterpret_cast<u8*>(segments + ds);
        std::memcpy(to, &head, sizeof head);
        std::memcpy(to + sizeof head, reinterpret_cast<const void*>(row.address), row.length);
        ds = all;
    } else if (row.length != 0) {
        segments[ds++] = data_segment(row.address, row.length, row.lkey);
    }
    const u32 size = wqebbs(ds);
    if (posted + size - done > rings.sq_blocks) return size;
    const u32 mode = (signal_all || row.flags & kFlagSignalled ? kCqUpdate : 0) |
                     (row.flags & kFlagSolicited ? kSolicited : 0) | (row.flags & kFlagFence ? kFence : 0);
    ctrl = ctrl_segment(opcode, 0, static_cast<u32>(posted), qpn, ds, mode, has_imm(opcode) ? row.imm : 0);
    segments[0] = ctrl;
    put(posted * kDsPerBb, segments, ds);
    return size;
}

Posted DirectQp::send(const void* from, size_t count) {
    const BatchSend* const rows = static_cast<const BatchSend*>(from);
    const u32 mask = rings.sq_blocks - 1;
    Posted answer = {0, count};
    Vec16 ctrl{};
    for (size_t i = 0; i < count; ++i) {
        const bool known = rows[i].opcode < sizeof kOpcodes / sizeof *kOpcodes;
        const u32 size = known ? write(rows[i], ctrl) : 0;
        if (size == 0 || posted + size - done > rings.sq_blocks) {
            answer = {size == 0 ? EINVAL : ENOMEM, i};
            break;
        }
        wr_ids[posted & mask] = rows[i].wr_id;
        blocks[posted & mask] = static_cast<u8>(size);
        const Opcode opcode = kOpcodes[rows[i].opcode];
        const bool runs = size == 1 && (signal_all || rows[i].flags & kFlagSignalled);
        if (!runs || opcode != run_opcode) {
            run_begin = runs ? posted : posted + size;
            run_opcode = opcode;
        }
        posted += size;
    }
    if (answer.count != 0) {
        cpu::to_device();
        __atomic_store_n(&rings.dbrec[kDbrecSend], swap_bytes(static_cast<u32>(posted & 0xffff)), __ATOMIC_RELAXED);
        cpu::ring(rings.doorbell, doorbell_last(ctrl));
    }
    return answer;
}

Posted DirectQp::receive(const void* from, size_t count) {
    const BatchRecv* const rows = static_cast<const BatchRecv*>(from);
    Posted answer = {0, count};
    for (size_t i = 0; i < count; ++i) {
        if (receives - received >= rings.rq_count) {
            answer = {ENOMEM, i};
            break;
        }
        const u64 slot = receives & (rings.rq_count - 1);
        const Vec16 list[] = {data_segment(rows[i].address, rows[i].length, rows[i].lkey), data_segment(0, 0, kInvalidLkey)};
        const bool only = rows[i].length == 0, ended = !only && rings.rq_stride > kDs;
        u8* const wqe = static_cast<u8*>(rings.rq) + slot * rings.rq_stride;
        std::memcpy(wqe, only ? list + 1 : list, ended ? 2 * kDs : kDs);
        receive_ids[slot] = rows[i].wr_id;
        ++receives;
    }
    if (answer.count != 0) {
        cpu::to_device();
        __atomic_store_n(&rings.dbrec[kDbrecReceive], swap_bytes(static_cast<u32>(receives & 0xffff)), __ATOMIC_RELAXED);
    }
    return answer;
}

// ---- completions
bool DirectCq::begin(const Mlx5Cq& found) {
    ring = found;
    while ((1u << log_entries) < found.cqe_cnt) ++log_entries;
    return found.dbrec[kDbrecSetCi] == 0;
}

void DirectCq::join(u32 qpn, DirectQp* qp) {
    queue_pairs[qpn] = qp;
    known_ = nullptr;
}

int DirectCq::poll(Wc* into, int most, u32* stranger) {
    // What is used for each CQE is held in locals: rows are of the same types, so members would be read anew behind each.
    const u32 mask = ring.cqe_cnt - 1, stride = ring.cqe_size, log = log_entries;
    const u8* const first = static_cast<const u8*>(ring.buf) + (stride - kCqe);
    DirectQp* qp = known_;
    u64 at = consumed;
    u32 last = last_, bad = 0;
    Wc* row = into;
    Wc* const end = into + most;
    while (row != end) {
        const u32 slot = static_cast<u32>(at) & mask;
        const u8* const entry = first + static_cast<size_t>(slot) * stride;
        const u64 tail = tail_of(entry);
        if (!cqe_ready(op_own_of(tail), at, log)) break;
        cpu::from_device();
        const u32 number = qpn_of(tail);
        if (qp == nullptr || number != last) {
            const auto found = queue_pairs.find(number);
            if (found == queue_pairs.end()) {
                *stranger = number;
                break;
            }
            last = number;
            qp = found->second;
            if (qp == nullptr) {
                ++at;
                continue;
            }
        }
        if (is_plain(tail)) {
            const u32 left = static_cast<u32>(end - row);
            const u64 outstanding = qp->done >= qp->run_begin ? qp->posted - qp->done : 0;
            u32 count = outstanding < left ? static_cast<u32>(outstanding) : left;
            const u8* const other = first + static_cast<size_t>((at + count - 1) & mask) * stride;
            if (count < 2 || !take_known(*qp, tail, other, at + count - 1, log, count, row)) {
                const u32 in_lap = mask + 1 - slot;
                count = take_run(*qp, entry, stride, in_lap < left ? in_lap : left, row);
            }
            at += count;
            row += count;
            continue;
        }
        ++at;
        Wc& wc = *row++;
        wc = Wc{};
        wc.qp_num = number;
        const CqeOpcode what = static_cast<CqeOpcode>(op_own_of(tail) >> 4);
        if (what == CqeOpcode::requester || what == CqeOpcode::requester_error) take_sent(*qp, entry, tail, wc);
        else take_received(*qp, entry, tail, wc);
        if (what == CqeOpcode::requester_error || what == CqeOpcode::responder_error) {
            wc.status = status_of(static_cast<Syndrome>(entry[offsetof(ErrorCqe, syndrome)]));
            wc.vendor_err = entry[offsetof(ErrorCqe, vendor_syndrome)];
            ++bad;
        }
    }
    known_ = qp;
    last_ = last;
    failed = bad;
    if (at != consumed) {
        consumed = at;
        cpu::from_device();  // and what was completed, before the caller looks at it
        cpu::with_device();  // the entries are read before the device may write them again
        __atomic_store_n(&ring.dbrec[kDbrecSetCi], swap_bytes(static_cast<u32>(at & 0xffffff)), __ATOMIC_RELAXED);
    }
    return row == into && *stranger != 0 ? -1 : static_cast<int>(row - into);
}

}  // namespace rdmakit::verbs
