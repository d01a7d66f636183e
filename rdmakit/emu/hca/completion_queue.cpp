// completion_queue.cpp — creating CQs, writing entries, overrun, and arming.
// Leans on completion_queue.hpp. mlx5 PRM "Completion Queue"; man ibv_create_cq, ibv_req_notify_cq.
#include "completion_queue.hpp"

#include <cerrno>
#include <cstring>

#include "../explore/weak_memory.hpp"
#include "flight.hpp"
#include "hca.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

u64 CompletionQueue::unconsumed() const {
    const u32 consumed = swap_bytes(info.dbrec[kDbrecSetCi]) & 0xffffff;
    return (info.produced - consumed) & 0xffffff;
}

bool CompletionQueue::push(const void* cqe, const u8* preceding, Environment& environment, u32 agent) {
    if (info.dead) return false;
    if (WeakMemory* weak = environment.weak()) {
        u32 record = 0;  // what it says now is what counts; that the HCA looks at it is what the model has to know
        weak->dma_read(agent, &record, &info.dbrec[kDbrecSetCi], sizeof record, "reads the consumer index", Order::relaxed);
    }
    if (!info.collapsed && unconsumed() >= entries()) {
        if (!info.overrun_ignore) {
            info.dead = true;
            return false;
        }
        ++info.overwritten;
    }
    u8* const entry = static_cast<u8*>(info.buffer) +
                      cqe_slot(info.produced, info.log_entries, info.collapsed) * info.cqe_bytes;
    u8* const body = entry + (info.cqe_bytes - kCqe);  // of a 128-byte entry the CQE64 is the second half
    u8 op_own = static_cast<const u8*>(cqe)[kCqe - 1];
    const CqeOpcode opcode = static_cast<CqeOpcode>(op_own >> 4);
    op_own |= static_cast<u8>(cqe_owner(info.produced, info.log_entries, info.collapsed));
    if (WeakMemory* weak = environment.weak()) {
        u8 whole[kCqe];
        std::memcpy(whole, cqe, kCqe - 1);
        whole[kCqe - 1] = op_own;
        if (preceding && info.cqe_bytes == 128) weak->dma_write(agent, entry, preceding, 64, WeakMemory::kOwn, "writes a CQE");
        weak->dma_write(agent, body, whole, kCqe, WeakMemory::kOwn, "writes a CQE");
    } else {
        if (preceding && info.cqe_bytes == 128) std::memcpy(entry, preceding, 64);
        std::memcpy(body, cqe, kCqe - 1);
        // The owner byte last: software that sees it may read the rest.
        __atomic_store_n(body + kCqe - 1, op_own, __ATOMIC_RELEASE);
    }
    ++info.produced;
    if ((op_own & kSolicited) || opcode == CqeOpcode::requester_error || opcode == CqeOpcode::responder_error)
        last_solicited = info.produced;
    environment.memory_written(entry, info.cqe_bytes);
    return true;
}

Status Hca::create_cq(const CqAttr& attr, u32* cqn) {
    if (attr.log_entries > config_.max_log_cqes)
        return refuse(EINVAL, "CQ of 2^%u entries: this device has at most 2^%u", attr.log_entries,
                      config_.max_log_cqes);
    if (attr.cqe_bytes != 64 && attr.cqe_bytes != 128)
        return refuse(EINVAL, "CQE size %u: choose 64 or 128", attr.cqe_bytes);
    if (reinterpret_cast<u64>(attr.buffer) % 64 || reinterpret_cast<u64>(attr.dbrec) % 8)
        return refuse(EINVAL, "CQ buffer must be 64-byte and its doorbell record 8-byte aligned");
    auto cq = std::make_unique<CompletionQueue>();
    cq->info.log_entries = attr.log_entries;
    cq->info.cqe_bytes = attr.cqe_bytes;
    cq->info.collapsed = attr.collapsed;
    cq->info.overrun_ignore = attr.overrun_ignore;
    cq->info.buffer = attr.buffer;
    cq->info.dbrec = attr.dbrec;
    if (!attr.buffer) {
        const std::size_t bytes = static_cast<std::size_t>(cq->entries()) * attr.cqe_bytes;
        cq->owned_buffer = allocate_pages(bytes);
        if (!cq->owned_buffer) return refuse(ENOMEM, "no memory for a CQ of %zu bytes", bytes);
        u8* const buffer = static_cast<u8*>(cq->owned_buffer.get());
        for (std::size_t end = attr.cqe_bytes; end <= bytes; end += attr.cqe_bytes) buffer[end - 1] = kCqeInitial;
        cq->info.buffer = buffer;
    }
    if (!attr.dbrec) {
        cq->owned_dbrec = allocate_pages(64);
        if (!cq->owned_dbrec) return refuse(ENOMEM, "no memory for a doorbell record");
        cq->info.dbrec = static_cast<u32*>(cq->owned_dbrec.get());
    }
    cq->info.cqn = static_cast<u32>(cqs_.size());
    *cqn = cq->info.cqn;
    cqs_.push_back(std::move(cq));
    return {};
}

Status Hca::destroy_cq(u32 cqn) {
    const CompletionQueue* cq = find_cq(cqn);
    if (!cq) return refuse(EINVAL, "no CQ 0x%x", cqn);
    if (cq->info.users)
        return refuse(EBUSY, "CQ 0x%x is used by %u queues: destroy their QPs first", cqn, cq->info.users);
    cqs_[cqn].reset();
    return {};
}

Status Hca::query_cq(u32 cqn, CqInfo* info) const {
    const CompletionQueue* cq = find_cq(cqn);
    if (!cq) return refuse(EINVAL, "no CQ 0x%x", cqn);
    *info = cq->info;
    return {};
}

Status Hca::arm_cq(u32 cqn, bool solicited_only) {
    CompletionQueue* cq = find_cq(cqn);
    if (!cq) return refuse(EINVAL, "no CQ 0x%x", cqn);
    ++cq->info.arm_sequence;
    const u64 waiting = cq->unconsumed();
    const u64 since_solicited = cq->info.produced - cq->last_solicited;
    const bool fire = solicited_only ? cq->last_solicited != 0 && since_solicited < waiting : waiting != 0;
    cq->armed = fire ? CompletionQueue::Armed::no
                     : solicited_only ? CompletionQueue::Armed::solicited : CompletionQueue::Armed::any;
    if (fire) report(AsyncEventType::completion, cqn);
    return {};
}

// False if the entry could not be written; the caller takes the QP to ERR.
bool Hca::push_cqe(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding) {
    if (!stepwise_) return push_now(qp, cq, cqe, preceding, 0);
    introduce(qp);
    const u32 opcode = static_cast<const u8*>(cqe)[kCqe - 1] >> 4;
    if (opcode == static_cast<u32>(CqeOpcode::requester) || opcode == static_cast<u32>(CqeOpcode::requester_error))
        return push_now(qp, cq, cqe, preceding, qp.flight->requester);
    complete_later(qp, cq, cqe, preceding);  // behind what the responder has still to place
    return true;
}
bool Hca::push_now(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding, u32 agent) {
    const bool was_dead = cq.info.dead;
    const u64 overwritten = cq.info.overwritten;
    if (!cq.push(cqe, preceding, environment_, agent)) {
        if (!was_dead) {
            ++counters_.cq_overruns;
            report(AsyncEventType::cq_error, cq.info.cqn);
        }
        return false;
    }
    counters_.cq_overruns += cq.info.overwritten - overwritten;
    ++counters_.cqes;
    ++qp.info.counters.cqes;
    if (cq.armed == CompletionQueue::Armed::any ||
        (cq.armed == CompletionQueue::Armed::solicited && cq.last_solicited == cq.info.produced)) {
        cq.armed = CompletionQueue::Armed::no;
        report(AsyncEventType::completion, cq.info.cqn);
    }
    return true;
}

void Hca::report(AsyncEventType type, u32 number, u32 syndrome) {
    ++counters_.async_events;
    environment_.async_event(*this, AsyncEvent{type, number, syndrome});
}

}  // namespace rdmakit::emu
