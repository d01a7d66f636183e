// open_device.hpp — one open /dev/infiniband/uverbsN: the objects that it holds, and the commands that make them.
// Leans on machine.hpp, event_file.hpp, command.hpp, devx.hpp. *_commands.cpp have the commands, one file for each kind of object;
// they include the kernel's own ABI headers, rdma/*.h of linux-libc-dev.
#pragma once
#include <rdma/mlx5-abi.h>

#include <map>

#include "command.hpp"
#include "devx.hpp"
#include "event_file.hpp"
#include "uar_pages.hpp"

namespace rdmakit::uverbs {

constexpr u32 kBfregsPerUar = 2;  // of four in a page, those that are no fast path (MLX5_NUM_NON_FP_BFREGS_PER_UAR)
constexpr u32 kCompVectors = 1;
constexpr u32 kGidEntries = 4;  // as the tree has

inline u32 log2_ceil(u32 value) {
    u32 log = 0;
    while ((1u << log) < value) ++log;
    return log;
}

constexpr u64 kDeviceMemory = 128 << 10;  // bytes of the NIC's own (max_dm_size)

// Without what a device may take no notice of.
u32 allowed_access(u32 access_flags);

// Memory of a file, mapped for the HCA.
struct Shared {
    static Shared of(int fd, u64 offset, u64 length);
    void forget();
    u8* bytes = nullptr;
    u32 device_memory = 0;  // its handle, if it is that

  private:
    void* base_ = nullptr;
    std::size_t mapped_ = 0;
};

struct DeviceMemory {
    int fd = -1;
    u64 length = 0;
    u32 regions = 0;
};

class OpenDevice final : public Listener {
  public:
    explicit OpenDevice(Hca* hca);
    ~OpenDevice() override;

    // A whole command as write(2) brings it; 0 or an errno.
    int write(const u8* bytes, std::size_t size);
    // RDMA_VERBS_IOCTL, whose argument is a struct ib_uverbs_ioctl_hdr; 0 or an errno.
    int ioctl(void* argument);
    // A UAR page for an mmap at this offset; null if there is none.
    void* map(u64 offset);
    // The file behind an mmap of `bytes` of device memory at this offset; -1 if there is none.
    int memory_file(u64 offset, std::size_t bytes);
    bool owns(const void* page) const { return uars_.owns(page); }
    void event(AsyncEvent event) override;

  private:
    using Count = std::shared_ptr<u32>;  // of events that the application has read
    struct CqRecord {
        u64 user_handle = 0;
        std::shared_ptr<EventFile> channel;
        Count completions = std::make_shared<u32>(0), errors = std::make_shared<u32>(0);
    };
    struct SrqRecord {
        u64 user_handle = 0;
        Count events = std::make_shared<u32>(0);
        u32 max_wr = 0, max_sge = 0;
    };
    struct QpRecord {
        u64 user_handle = 0;
        Count events = std::make_shared<u32>(0);
        u32 bfreg = 0;
        u32 max_send_wr = 0, max_recv_wr = 0, max_send_sge = 0, max_recv_sge = 0, max_inline = 0;
    };

    int run(u32 number, bool extended, Command& command);
    int run(u32 object, u32 method, Attributes& attributes);

    int get_context(Command& in);
    mlx5_ib_alloc_ucontext_resp describe_context() const;
    int open_context(Command& in, std::size_t core_request, std::size_t core_response);
    int query_device(Command& in, bool extended);
    int query_port(Command& in);
    int alloc_pd(Command& in);
    int dealloc_pd(Command& in);
    int reg_mr(Command& in);
    int dereg_mr(Command& in);
    int rereg_mr(Command& in);
    int create_ah(Command& in);
    int destroy_ah(Command& in);
    int create_channel(Command& in);
    int create_cq(Command& in, bool extended);
    int destroy_cq(Command& in);
    int create_srq(Command& in, bool extended);
    int modify_srq(Command& in);
    int query_srq(Command& in);
    int destroy_srq(Command& in);
    int create_qp(Command& in, bool extended);
    int modify_qp(Command& in);
    int query_qp(Command& in);
    int destroy_qp(Command& in);

    // ioctl_methods.cpp
    int invoke_write(Attributes& in);
    int ioctl_get_context(Attributes& in);
    int query_context(Attributes& in);
    int alloc_async(Attributes& in);
    int ioctl_query_port(Attributes& in);
    int query_steering(Attributes& in);
    int query_gid_entry(Attributes& in);
    int ioctl_dealloc_pd(Attributes& in);
    int query_pd(Attributes& in);
    int ioctl_dereg_mr(Attributes& in);
    int ioctl_query_mr(Attributes& in);
    int ioctl_create_cq(Attributes& in);
    int ioctl_destroy_cq(Attributes& in);
    int ioctl_create_qp(Attributes& in);
    int ioctl_destroy_qp(Attributes& in);

    // device_memory.cpp
    int reg_mapped(u32 pd, Shared memory, u64 length, u64 iova, u32 access, u32* key);
    void forget_mapped(u32 handle);
    int reg_dmabuf_mr(Attributes& in);
    int alloc_dm(Attributes& in);
    int query_dm(Attributes& in);
    int free_dm(Attributes& in);
    int reg_dm_mr(Attributes& in);

    Hca* const hca_;
    std::shared_ptr<EventFile> async_;
    bool opened_ = false, dynamic_uars_ = false;
    Count port_events_ = std::make_shared<u32>(0);
    std::map<u32, CqRecord> cqs_;
    std::map<u32, QpRecord> qps_;
    std::map<u32, bool> pds_, ahs_;
    u32 next_ah_ = 0;
    std::map<u32, u32> mrs_;  // handle → key, which changes when a region is registered anew
    std::map<u32, Shared> mapped_;  // by handle: the memory of regions that a descriptor named
    std::map<u32, DeviceMemory> device_memory_;
    u32 next_dm_ = 0;
    std::map<u32, SrqRecord> srqs_;
    u32 bfregs_ = 0, next_bfreg_ = 0;
    UarPages uars_;
    Devx devx_;
};

}  // namespace rdmakit::uverbs
