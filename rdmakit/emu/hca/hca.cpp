// hca.cpp — an HCA's own life: construction, addresses, refusals, and `work`, which runs its queues when time does not.
#include "hca.hpp"

#include <cerrno>
#include <cstdarg>
#include <cstdio>

#include "event_pool.hpp"
#include "memory_region.hpp"
#include "port.hpp"
#include "shared_receive_queue.hpp"
#include "uar.hpp"

namespace rdmakit::emu {

namespace {
// WQEs that one QP executes before the next has its turn.
constexpr u32 kTurn = 16;

HcaConfig checked(HcaConfig config) {
    config.ports = larger(1u, smaller(config.ports, kMaxPorts));
    config.name[sizeof config.name - 1] = 0;
    config.max_log_sq_bbs = smaller(config.max_log_sq_bbs, 15u);
    config.max_log_rq_wqes = smaller(config.max_log_rq_wqes, 15u);
    config.max_log_cqes = smaller(config.max_log_cqes, 22u);
    config.max_recv_sge = smaller(config.max_recv_sge, kMaxPieces);
    config.timing.port_bytes_per_second = larger<u64>(config.timing.port_bytes_per_second, 1);
    if (config.doorbell == DoorbellMode::device_default) config.doorbell = DoorbellMode::dbrec;
    return config;
}
}  // namespace

// Keys and QP numbers start at seeded places, so that a key or number of the wrong device is not right by luck.
Hca::Hca(Environment& environment, Fabric& fabric, const HcaConfig& config)
    : environment_(environment),
      fabric_(fabric),
      config_(checked(config)),
      timed_(environment.timed()),
      stepwise_(environment.stepwise()),
      weak_(environment.weak()),
      qpn_base_(config_.first_qpn != 0 ? config_.first_qpn : 0x100 + static_cast<u32>(environment.random(0x8000))),
      memory_(std::make_unique<MemoryRegions>(2 + static_cast<u32>(environment.random(254)),
                                              static_cast<u32>(environment.random(256)), config_.max_mrs)),
      ports_(std::make_unique<Ports>(config_)),
      pds_(1),   // number 0 is nobody's, as for CQs
      cqs_(1),
      srqs_(1),
      events_(std::make_unique<EventPool>()) {
    UarPage first;
    alloc_uar(&first);
}

Hca::~Hca() { fabric_.detach(this); }

Status Hca::refuse(int code, const char* format, ...) const {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message_, sizeof message_, format, arguments);
    va_end(arguments);
    return Status{code, message_};
}

Status Hca::add_address(u32 port, const Gid& gid, u32 lid) {
    if (port < 1 || port > ib_ports()) return refuse(EINVAL, "%s has no IB port %u", config_.name, port);
    return fabric_.attach(this, port, gid, lid);
}

void Hca::enqueue(QueuePair& qp) {
    if (stepwise_) {
        list(qp);
        return;
    }
    ports_->enqueue(qp);
    if (timed_) {
        wake_port(qp.queued_at, environment_.now_ps());
    } else {
        announce();
    }
}

void Hca::announce() {
    if (announced_) return;
    announced_ = true;
    environment_.ready(*this);
}

u32 Hca::work(u32 budget) {
    if (stepwise_) return work_stepwise(budget);
    announced_ = true;  // until the end of this call nobody need be told
    copy_payload_ = environment_.copy_payload();
    turn_stalled();
    if (!late_doorbells_.empty()) ring_late_doorbells();
    u32 executed = 0;
    u32 empty_ports = 0;
    while (executed < budget && empty_ports < config_.ports) {
        next_port_ = next_port_ % config_.ports + 1;
        QueuePair* qp = ports_->dequeue(next_port_);
        if (!qp) {
            ++empty_ports;
            continue;
        }
        empty_ports = 0;
        for (u32 turn = smaller(kTurn, budget - executed); turn != 0 && qp->has_work(); --turn) {
            step(*qp);
            ++executed;
        }
        if (qp->has_work()) ports_->enqueue(*qp);
    }
    bool counting = false;
    for (const u32 qpn : stalled_) {
        const QueuePair* qp = find_qp(qpn);
        counting |= qp && qp->stalled && qp->turns_left != 0;
    }
    announced_ = counting || !late_doorbells_.empty() || ports_->any_queued();
    if (announced_) environment_.ready(*this);
    return executed;
}

}  // namespace rdmakit::emu
