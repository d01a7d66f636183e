// kernel.hpp — one open /dev/infiniband/uverbsN: the objects that it holds, and the commands that make them.
// Leans on machine.hpp and on the kernel's own ABI headers, rdma/ib_user_verbs.h and rdma/mlx5-abi.h (linux-libc-dev).
// Commands come by write(2), as kernels before 4.14 took them: libibverbs falls back to that when ioctl(2) says ENOTTY.
#pragma once
#include <map>

#include "event_file.hpp"

namespace rdmakit::uverbs {

class OpenDevice final : public Listener {
  public:
    explicit OpenDevice(Hca* hca) : hca_(hca) {}
    ~OpenDevice() override;

    // A whole command; 0 or an errno.
    int command(const u8* bytes, std::size_t size);
    // A UAR page for an mmap at this offset; null if there is none.
    void* map(u64 offset);
    bool owns(const void* page) const;
    void event(AsyncEvent event) override;

  private:
    struct In;
    using Count = std::shared_ptr<u32>;  // of events that the application has read
    struct CqRecord {
        u64 user_handle = 0;
        std::shared_ptr<EventFile> channel;
        Count completions = std::make_shared<u32>(0), errors = std::make_shared<u32>(0);
    };
    struct QpRecord {
        u64 user_handle = 0;
        Count events = std::make_shared<u32>(0);
        u32 bfreg = 0;
        u32 max_send_wr = 0, max_recv_wr = 0, max_send_sge = 0, max_recv_sge = 0, max_inline = 0;
    };

    int get_context(In& in);
    int query_device(In& in, bool extended);
    int query_port(In& in);
    int alloc_pd(In& in);
    int dealloc_pd(In& in);
    int reg_mr(In& in);
    int dereg_mr(In& in);
    int create_channel(In& in);
    int create_cq(In& in, bool extended);
    int destroy_cq(In& in);
    int create_qp(In& in, bool extended);
    int modify_qp(In& in);
    int query_qp(In& in);
    int destroy_qp(In& in);
    void* uar(u32 index);

    Hca* const hca_;
    std::shared_ptr<EventFile> async_;
    Count port_events_ = std::make_shared<u32>(0);
    std::map<u32, void*> uars_;    // libmlx5's index → page
    std::map<u32, u32> uar_ids_;   // libmlx5's index → the HCA's
    std::map<u32, CqRecord> cqs_;
    std::map<u32, QpRecord> qps_;
    std::map<u32, bool> pds_, mrs_;
    u32 bfregs_ = 0, next_bfreg_ = 0;
};

}  // namespace rdmakit::uverbs
