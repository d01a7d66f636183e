// proxy.hpp — mlx5 queues over a device that has none: WQEs from a ring are posted through libibverbs, what it completes
// comes back as CQEs. So soft-RoCE, EFA's siblings and a ConnectX whose doorbell cannot be mapped serve the same QPs.
// Leans on boxes.hpp and on cuda/rdmakit/hca.cuh, which says what WQE bytes mean. It is the CPU proxy of GPU-initiated
// RDMA: whoever writes the ring may be a kernel; `progress` looks at the doorbell records by itself.
//
// What plain verbs cannot say fails with LOCAL_QP_OP, as on an HCA without the capability: masked atomics, DUMP, inline
// and gathered payload in one WQE. A NOP travels as a WRITE of no bytes, which checks no rkey (IBTA 9.4.3).
#pragma once
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "boxes.hpp"
#include "rdmakit/hca.cuh"

namespace rdmakit::verbs {

struct ProxyCq {
    std::shared_ptr<CqBox> box;
    u8* ring = nullptr;
    u32* dbrec = nullptr;
    u32 log_entries = 0, cqe_bytes = 64;
    bool collapsed = false, overrun_ignore = false, dead = false;
    u64 produced = 0;

    void push(const void* cqe);
};

struct ProxyQp {
    std::shared_ptr<QpBox> box;
    SendRing sq{};
    const u8* rq = nullptr;
    u32 rq_stride = 0, log_rq = 0;
    u32* dbrec = nullptr;
    bool sq_sig_all = false;
    ProxyCq *send_cq = nullptr, *recv_cq = nullptr;
    u64 sent = 0, received = 0;  // basic blocks, receive WQEs handed on since the last RESET
};

class Proxy {
  public:
    Proxy() = default;
    ~Proxy() { stop(); }
    Proxy(const Proxy&) = delete;
    Proxy& operator=(const Proxy&) = delete;

    // Rings stay the caller's, who keeps them until remove. False: that number is taken.
    bool add_cq(u32 cqn, ProxyCq cq);
    bool add_qp(u32 qpn, ProxyQp qp);  // send_cq and recv_cq as found by find_cq
    void remove_cq(u32 cqn);
    void remove_qp(u32 qpn);
    ProxyCq* find_cq(u32 cqn);
    bool cq_is_dead(u32 cqn);
    void reset_qp(u32 qpn);
    // Hands on what the doorbell records say, takes what has completed. True if anything moved.
    bool progress();
    // A thread that makes progress by itself, for kernels of a GPU, of which nobody here knows when they ring. Both may
    // be repeated. A child of fork has no such thread.
    void start();
    void stop();

  private:
    void run();
    bool send(ProxyQp& qp);
    bool receive(ProxyQp& qp);
    bool take(ProxyCq& cq);
    void refuse(ProxyQp& qp, const DecodedWqe& wqe, Syndrome syndrome);
    void complete(const Wc& wc, ProxyCq& cq);

    bool of_this_process() const { return pid_ == getpid(); }

    const pid_t pid_ = getpid();
    std::atomic<bool> stopping_{false};
    std::unique_ptr<std::thread> thread_;
    std::mutex mutex_;
    std::unordered_map<u32, std::unique_ptr<ProxyCq>> cqs_;
    std::unordered_map<u32, std::unique_ptr<ProxyQp>> qps_;
};

}  // namespace rdmakit::verbs
