// snapshot.cpp — an HCA as it was: what exploration puts back before each schedule.
// Memory is not here: whoever runs the schedules knows which words were written.
#include "flight.hpp"
#include "hca.hpp"
#include "port.hpp"

namespace rdmakit::emu {

struct HcaSnapshot {
    HcaCounters counters;
    std::vector<QueuePairState> qps;  // of those that exist, in order
    struct Completions {
        CqInfo info;
        CompletionQueue::Armed armed;
        u64 last_solicited;
    };
    std::vector<Completions> cqs;
    std::vector<Port> ports;
};

std::shared_ptr<const HcaSnapshot> Hca::save() const {
    auto s = std::make_shared<HcaSnapshot>();
    s->counters = counters_;
    for (const auto& qp : qps_) {
        if (qp) s->qps.push_back(*qp);
    }
    for (const auto& cq : cqs_) {
        if (cq) s->cqs.push_back({cq->info, cq->armed, cq->last_solicited});
    }
    for (u32 port = 1; port <= config_.ports; ++port) s->ports.push_back(ports_->at(port));
    return s;
}

void Hca::restore(const HcaSnapshot& snapshot) {
    counters_ = snapshot.counters;
    auto state = snapshot.qps.begin();
    for (const auto& qp : qps_) {
        if (!qp) continue;
        static_cast<QueuePairState&>(*qp) = *state++;
        qp->flight->clear();
        qp->flight->listed = false;
    }
    auto completions = snapshot.cqs.begin();
    for (const auto& cq : cqs_) {
        if (!cq) continue;
        cq->info = completions->info;
        cq->armed = completions->armed;
        cq->last_solicited = completions->last_solicited;
        ++completions;
    }
    for (u32 port = 1; port <= config_.ports; ++port) ports_->at(port) = snapshot.ports[port - 1];
    moving_.clear();
    arriving_ = nullptr;
    announced_ = false;
}

}  // namespace rdmakit::emu
