// between_processes.cpp — requests to queue pairs of other processes, and theirs to ours.
// Leans on machine.hpp. Each process has an object for every HCA of the tree; the one whose queue pairs a number belongs to
// is in the number's upper bits. Nothing is lost on this wire: what does not come back is its reader's end.
#include <sched.h>
#include <time.h>

#include <cstring>
#include <type_traits>

#include "machine.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u64 kPatienceNs = 4'000'000'000ull;  // with a process that is there and does not answer

struct Head {
    enum Kind : u32 { request = 1, answer = 2 } kind;
    u32 from, to;  // HCAs, by their place in the tree
};
struct RequestHead {
    Head head;
    RemoteRequest request;
};
struct AnswerHead {
    Head head;
    RemoteAnswer answer;
};
static_assert(std::is_trivially_copyable_v<RequestHead> && std::is_trivially_copyable_v<AnswerHead>);

u64 monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<u64>(now.tv_sec) * 1'000'000'000ull + static_cast<u64>(now.tv_nsec);
}

template <class T>
bool split(const u8* message, std::size_t bytes, T* head, std::vector<u8>* data) {
    if (bytes < sizeof *head) return false;
    std::memcpy(head, message, sizeof *head);
    data->assign(message + sizeof *head, message + bytes);
    return true;
}

}  // namespace

u32 Machine::index_of(const Hca& hca) const {
    u32 index = 0;
    while (hcas_[index].get() != &hca) ++index;
    return index;
}

bool Machine::carry(Hca& from, Hca& to, const RemoteRequest& request, const std::vector<u8>& data) {
    const RequestHead head{{Head::request, index_of(from), index_of(to)}, request};
    const u32 process = request.dest_qpn >> kQpnBits;
    if (!wire_.send(process, &head, sizeof head, data.data(), data.size())) return false;
    Pending& pending = pending_[{&from, request.source_qpn}];
    if (pending.requests++ == 0) pending.since_ns = monotonic_ns();
    pending.process = process;
    return true;
}

bool Machine::move_wire() {
    return wire_.move([this](u32 from, const u8* message, std::size_t bytes) { take(from, message, bytes); });
}

void Machine::take(u32 from, const u8* message, std::size_t bytes) {
    Head head;
    std::vector<u8> data;
    if (bytes < sizeof head) return;
    std::memcpy(&head, message, sizeof head);
    if (head.from >= hcas_.size() || head.to >= hcas_.size()) return;
    if (head.kind == Head::request) {
        RequestHead whole;
        if (!split(message, bytes, &whole, &data)) return;
        const AnswerHead answer{{Head::answer, head.to, head.from},
                                hcas_[head.to]->serve(whole.request, data, *hcas_[head.from])};
        wire_.send(from, &answer, sizeof answer, data.data(), data.size());
    } else if (head.kind == Head::answer) {
        AnswerHead whole;
        if (!split(message, bytes, &whole, &data)) return;
        const auto found = pending_.find({hcas_[head.to].get(), whole.answer.qpn});
        if (found != pending_.end()) {
            found->second.since_ns = monotonic_ns();
            if (--found->second.requests == 0) pending_.erase(found);
        }
        hcas_[head.to]->answered(whole.answer, data);
    }
}

// Requests that nobody will answer any more are lost; what that means to their queue pairs is the HCA's to say.
void Machine::give_up(u64 now_ns) {
    last_check_ns_ = now_ns;
    // Whoever has ended may have answered before.
    for (const auto& [requester, pending] : pending_) {
        if (wire_.alive(pending.process)) continue;
        move_wire();
        break;
    }
    for (auto at = pending_.begin(); at != pending_.end();) {
        const Pending pending = at->second;
        const auto [hca, qpn] = at->first;
        const bool alive = wire_.alive(pending.process);
        if (alive && now_ns < pending.since_ns + kPatienceNs) {
            ++at;
            continue;
        }
        if (!alive) wire_.forget(pending.process);
        at = pending_.erase(at);
        hca->unanswered(qpn);
    }
}

}  // namespace rdmakit::uverbs
