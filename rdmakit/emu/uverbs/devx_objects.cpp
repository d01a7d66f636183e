// devx_objects.cpp — PDs, completion queues and mkeys that a program creates by command, in memory it has registered.
// Leans on devx.hpp. Layouts: prm.hpp.
#include "devx.hpp"

namespace rdmakit::uverbs {

u8* Devx::in_umem(u32 id, u64 offset, u64 bytes) {
    const auto found = umems_.find(id);
    if (found == umems_.end()) return nullptr;
    const Umem& umem = found->second;
    if (offset > umem.bytes || bytes > umem.bytes - offset) return nullptr;
    named_.push_back(id);
    return reinterpret_cast<u8*>(umem.address + offset);
}

Devx::Verdict Devx::alloc_pd(u32* number) { return verdict("ALLOC_PD", hca_->alloc_pd(number)); }

Devx::Verdict Devx::create_cq(const Box& in, u32* number) {
    const auto asked = [&](Bits field) { return in.get(prm::kCqc + field); };
    const u64 size = asked(prm::cqc::kCqeSize);
    if (size > 1 || asked(prm::cqc::kCompression) != 0 || uars_.find(static_cast<u32>(asked(prm::cqc::kUarPage))) == nullptr)
        return verdict("CREATE_CQ", {EINVAL, "64 or 128 bytes an entry, not compressed, on a UAR page of this context"});
    CqAttr attr;
    attr.log_entries = static_cast<u32>(asked(prm::cqc::kLogSize));
    attr.cqe_bytes = size == 0 ? 64 : 128;
    attr.collapsed = asked(prm::cqc::kCollapsed) != 0;
    attr.overrun_ignore = asked(prm::cqc::kOverrunIgnore) != 0;
    if (in.get(prm::kCqUmemValid) == 0 || asked(prm::cqc::kDbrUmemValid) == 0)
        return verdict("CREATE_CQ", {EINVAL, "ring and record must lie in umems: a process has no physical addresses"});
    attr.buffer = in_umem(in.get32(prm::kCqUmemId), in.get(prm::kCqUmemOffset), u64{attr.cqe_bytes} << attr.log_entries);
    attr.dbrec = reinterpret_cast<u32*>(
        in_umem(static_cast<u32>(asked(prm::cqc::kDbrUmemId)), asked(prm::cqc::kDbrAddr), 2 * sizeof(u32)));
    if (attr.buffer == nullptr || attr.dbrec == nullptr)
        return verdict("CREATE_CQ", {EINVAL, "ring or record lie outside their umem"});
    const Status status = hca_->create_cq(attr, number);
    if (status.ok()) Machine::here().add_cq(hca_, *number, attr.dbrec);
    return verdict("CREATE_CQ", status);
}

Devx::Verdict Devx::query_cq(u32 cqn, Box& out) const {
    CqInfo info;
    if (const Status status = hca_->query_cq(cqn, &info); !status.ok()) return verdict("QUERY_CQ", status);
    const auto set = [&](Bits field, u64 value) { out.set(prm::kCqc + field, value); };
    constexpr u32 kOverflow = 0x9;  // MLX5_CQC_STATUS_CQ_OVERFLOW
    set(prm::cqc::kStatus, info.dead ? kOverflow : 0);
    set(prm::cqc::kCqeSize, info.cqe_bytes == 64 ? 0 : 1);
    set(prm::cqc::kCollapsed, info.collapsed);
    set(prm::cqc::kOverrunIgnore, info.overrun_ignore);
    set(prm::cqc::kLogSize, info.log_entries);
    set(prm::cqc::kConsumer, swap_bytes(__atomic_load_n(&info.dbrec[0], __ATOMIC_ACQUIRE)) & 0xffffff);
    set(prm::cqc::kProducer, info.produced & 0xffffff);
    return {};
}

Devx::Verdict Devx::create_mkey(const Box& in, u32* number) {
    const auto asked = [&](Bits field) { return in.get(prm::kMkc + field); };
    const u64 mode = asked(prm::mkc::kAccessMode4To2) << 2 | asked(prm::mkc::kAccessMode1To0);
    if (mode != prm::mkc::kMtt || asked(prm::mkc::kFree) != 0 || in.get(prm::kMkeyUmemValid) == 0)
        return verdict("CREATE_MKEY", {EINVAL, "access mode MTT over a umem alone; neither KLMs nor a free key for UMR"});
    const u64 length = asked(prm::mkc::kLength64) != 0 ? ~0ull : asked(prm::mkc::kLength);
    u8* const memory = in_umem(in.get32(prm::kMkeyUmemId), in.get(prm::kMkeyUmemOffset), length);
    if (memory == nullptr) return verdict("CREATE_MKEY", {EINVAL, "the region lies outside its umem"});
    const u32 access = (asked(prm::mkc::kLocalWrite) != 0 ? kAccessLocalWrite : 0) |
                       (asked(prm::mkc::kRemoteWrite) != 0 ? kAccessRemoteWrite : 0) |
                       (asked(prm::mkc::kRemoteRead) != 0 ? kAccessRemoteRead : 0) |
                       (asked(prm::mkc::kAtomic) != 0 ? kAccessRemoteAtomic : 0) |
                       (asked(prm::mkc::kRelaxedWrite) != 0 ? kAccessRelaxedOrdering : 0);
    return verdict("CREATE_MKEY",
                   hca_->create_mkey(static_cast<u32>(asked(prm::mkc::kPd)), memory, length, asked(prm::mkc::kStart), access,
                                     static_cast<u8>(asked(prm::mkc::kLowByte)), number));
}

}  // namespace rdmakit::uverbs
