// late_write.cpp — holding writes back, and landing them: when their time has come, or before something they must not
// be passed by. Leans on late_write.hpp. man ibv_reg_mr: relaxed ordered operations do not bypass atomics, and "a
// completion still ensures that all data is visible".
#include "late_write.hpp"

#include <cstring>

#include "event_pool.hpp"
#include "hca.hpp"
#include "memory_region.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

// False: it is to be written now.
bool Hca::write_later(QueuePair& qp, u32 rkey, const Pieces& from, u8* at, u64 bytes) {
    if (!timed_ || bytes == 0) return false;
    const KeyEntry* region = memory_->find(rkey);
    if (!region || !(region->access & kAccessRelaxedOrdering)) return false;
    if (!environment_.fault(FaultKind::relaxed, qp.info.qpn)) return false;
    LateWrite late{late_number_++, qp.info.qpn, at, std::vector<u8>(bytes)};
    gather_pieces(from, late.bytes.data(), bytes);  // the source may be reused as soon as this is acknowledged
    ++counters_.late_writes;
    schedule(environment_.now_ps() + environment_.fault_delay_ps(FaultKind::relaxed), EventKind::landing, qp.info.qpn,
             late.number, 0, 0);
    late_writes_.push_back(std::move(late));
    return true;
}

// Those of one QP; 0: of all. `number`, unless it is kEveryLateWrite, picks one.
void Hca::land(u32 qpn, u64 number) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < late_writes_.size(); ++i) {
        LateWrite& late = late_writes_[i];
        if ((qpn == 0 || late.qpn == qpn) && (number == kEveryLateWrite || late.number == number)) {
            std::memcpy(late.at, late.bytes.data(), late.bytes.size());
            environment_.memory_written(late.at, late.bytes.size());
        } else {
            if (kept != i) late_writes_[kept] = std::move(late);
            ++kept;
        }
    }
    late_writes_.resize(kept, LateWrite{});
}

}  // namespace rdmakit::emu
