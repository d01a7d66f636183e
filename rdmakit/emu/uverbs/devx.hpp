// devx.hpp — DevX: commands to the device itself, which a program writes field by field, and the objects they create.
// Leans on ioctl_attributes.hpp, prm.hpp, uar_pages.hpp. rdma/mlx5_user_ioctl_cmds.h; kernel drivers/infiniband/hw/mlx5/
// devx.c says which commands pass (devx_is_general_cmd, devx_is_obj_*_cmd) and that the object must be the one named.
#pragma once
#include <functional>
#include <map>
#include <vector>

#include "event_file.hpp"
#include "ioctl_attributes.hpp"
#include "prm.hpp"
#include "uar_pages.hpp"

namespace rdmakit::uverbs {

class Devx {
  public:
    // `is_ours`: a QP, or a CQ, of this open device that verbs have made, whose handle is its number.
    using IsOurs = std::function<bool(u32 number, bool queue_pair)>;
    Devx(Hca* hca, UarPages& uars, IsOurs is_ours) : hca_(hca), uars_(uars), is_ours_(std::move(is_ours)) {}
    void close();  // destroys what is left
    // An event of the device's: told to those who have subscribed to it.
    void event(AsyncEvent event);

    void allow() { allowed_ = true; }  // the context asked for it (MLX5_IB_ALLOC_UCTX_DEVX)
    // A method of one of mlx5's objects; 0 or an errno.
    int run(u32 object, u32 method, Attributes& in);

  private:
    enum class Kind { pd, cq, qp, mkey };
    struct Object {
        Kind kind;
        u32 number;
        std::vector<u32> umems;
    };
    struct Umem {
        u64 address, bytes, access;
        void* mapped;  // a dma-buf's pages, for us; else null
    };
    // Who wants to hear of an object's events (MLX5_EVENT_TYPE_*), and with which words.
    struct Subscription {
        std::shared_ptr<EventFile> channel;
        u32 handle;
        u16 type;
        u64 cookie;
    };
    // What a command comes to: status and syndrome of its answer.
    struct Verdict {
        u8 status = prm::ok;
        u32 syndrome = 0;
    };

    // devx.cpp
    int general(Attributes& in);
    int create(Attributes& in);
    int destroy(Attributes& in);
    int modify(Attributes& in);
    int query(Attributes& in);
    int register_umem(Attributes& in);
    int forget_umem(Attributes& in);
    int query_eqn(Attributes& in);
    int alloc_channel(Attributes& in);
    int subscribe(Attributes& in);
    int query_uar(Attributes& in);
    int alloc_uar(Attributes& in);
    int free_uar(Attributes& in);
    bool may_touch(u32 handle, Kind kind, u32 number) const;
    int destroy(const Object& object);
    Verdict verdict(const char* command, const Status& status) const;
    static int answer(Verdict verdict, Box& out);

    // devx_events.cpp
    void forget_events(u32 handle);

    // devx_capabilities.cpp
    Verdict query_capabilities(const Box& in, Box& out) const;
    Verdict query_lag(Box& out) const;

    // devx_objects.cpp
    Verdict alloc_pd(u32* number);
    Verdict create_cq(const Box& in, u32* number);
    Verdict query_cq(u32 cqn, Box& out) const;
    Verdict create_mkey(const Box& in, u32* number);
    // `bytes` at `offset` of a umem; null if it has no such place.
    u8* in_umem(u32 id, u64 offset, u64 bytes);

    // devx_queue_pairs.cpp
    Verdict create_qp(const Box& in, u32* number);
    bool reaches(const Box& in, const Gid& gid) const;
    Verdict modify_qp(u32 qpn, const Box& in);
    Verdict rts2rts(u32 qpn, const Box& in);
    Verdict query_qp(u32 qpn, Box& out) const;

    Hca* const hca_;
    UarPages& uars_;
    const IsOurs is_ours_;
    bool allowed_ = false;
    std::map<u32, Object> objects_;  // by handle
    std::map<u32, Umem> umems_;      // by id, which is the handle too
    std::vector<Subscription> subscriptions_;
    std::map<int, bool> omits_data_;  // by a channel's descriptor
    std::map<u32, u64> macs_;        // by QP number: the peer's address as INIT2RTR gave it
    std::vector<u32> named_;         // umems that the command at hand has named
    u32 next_handle_ = 0, next_umem_ = 0;
};

}  // namespace rdmakit::uverbs
