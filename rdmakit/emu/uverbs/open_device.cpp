// open_device.cpp — an open device's end, and the events that it passes on.
#include "open_device.hpp"

#include <rdma/ib_user_verbs.h>
#include <unistd.h>

namespace rdmakit::uverbs {

OpenDevice::OpenDevice(Hca* hca)
    : hca_(hca), uars_(hca), devx_(hca, uars_, [this](u32 number, bool queue_pair) {
          return queue_pair ? qps_.count(number) != 0 : cqs_.count(number) != 0;
      }) {}

OpenDevice::~OpenDevice() {
    Machine& machine = Machine::here();
    const std::lock_guard<std::recursive_mutex> hold(machine.lock());
    machine.forget(this);
    devx_.close();
    for (const auto& [qpn, record] : qps_) {
        machine.remove_qp(hca_, qpn);
        hca_->destroy_qp(qpn);
    }
    for (const auto& [cqn, record] : cqs_) {
        machine.remove_cq(hca_, cqn);
        hca_->destroy_cq(cqn);
    }
    for (const auto& [srqn, record] : srqs_) hca_->destroy_srq(srqn);
    for (const auto& [handle, key] : mrs_) hca_->dereg_mr(key);
    for (auto& [handle, memory] : mapped_) memory.forget();
    for (const auto& [handle, memory] : device_memory_) close(memory.fd);
    for (const auto& [pd, live] : pds_) hca_->dealloc_pd(pd);
    uars_.close();
    machine.move_wire();  // what has come in by now has come in by a port, though its queue pair is gone
    machine.publish();
}

void OpenDevice::event(AsyncEvent event) {
    devx_.event(event);
    if (!async_) return;
    if (event.type == AsyncEventType::completion) {
        const auto cq = cqs_.find(event.number);
        if (cq == cqs_.end() || !cq->second.channel) return;
        const ib_uverbs_comp_event_desc told = {cq->second.user_handle};
        const Count& count = cq->second.completions;
        cq->second.channel->push(&told, sizeof told, count.get(), count);
        return;
    }
    // enum ib_event_type of include/rdma/ib_verbs.h, which is libibverbs's ibv_event_type
    ib_uverbs_async_event_desc told = {};
    Count count = port_events_;
    const auto of_qp = [&](u32 type) {
        const auto qp = qps_.find(event.number);
        if (qp == qps_.end()) return false;
        told.element = qp->second.user_handle;
        told.event_type = type;
        count = qp->second.events;
        return true;
    };
    const auto of_cq = [&](u32 type) {
        const auto cq = cqs_.find(event.number);
        if (cq == cqs_.end()) return false;
        told.element = cq->second.user_handle;
        told.event_type = type;
        count = cq->second.errors;
        return true;
    };
    const auto of_srq = [&](u32 type) {
        const auto srq = srqs_.find(event.number);
        if (srq == srqs_.end()) return false;
        told.element = srq->second.user_handle;
        told.event_type = type;
        count = srq->second.events;
        return true;
    };
    const auto of_port = [&](u32 type) {
        told.element = event.number;
        told.event_type = type;
        return true;
    };
    bool known = false;
    switch (event.type) {
        case AsyncEventType::cq_error: known = of_cq(0); break;
        case AsyncEventType::qp_fatal: known = of_qp(1); break;
        case AsyncEventType::qp_request_error: known = of_qp(2); break;
        case AsyncEventType::qp_access_error: known = of_qp(3); break;
        case AsyncEventType::communication_established: known = of_qp(4); break;
        case AsyncEventType::sq_drained: known = of_qp(5); break;
        case AsyncEventType::srq_limit_reached: known = of_srq(15); break;
        case AsyncEventType::last_wqe_reached: known = of_qp(16); break;
        case AsyncEventType::port_active: known = of_port(9); break;
        case AsyncEventType::port_error: known = of_port(10); break;
        case AsyncEventType::completion:
        case AsyncEventType::doorbell_split: break;
    }
    if (known) async_->push(&told, sizeof told, count.get(), count);
}

}  // namespace rdmakit::uverbs
