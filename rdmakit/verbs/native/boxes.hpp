// boxes.hpp — handles that own what they stand on: a queue pair's box holds its PD and its CQs, they hold the context.
// Leans on library.hpp. The last owner destroys; so any order of dropping names is right, and so is the order in which
// a garbage collector or the interpreter's exit drops them. After fork the child destroys nothing: the kernel's objects
// belong to the parent, which still uses them.
#pragma once
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "library.hpp"

namespace rdmakit::verbs {

// How many forks lie between the first of these processes and this one: asked on every call, which getpid(2) is too slow for.
inline std::atomic<unsigned> forks{0};
inline const int watches_forks = pthread_atfork(nullptr, nullptr, [] { ++forks; });

// One object of libibverbs's and what destroys it.
template <class T>
class Box {
  public:
    using Destroy = int (*)(T*);
    using Parents = std::vector<std::shared_ptr<void>>;

    Box(T* raw, Destroy destroy, Parents parents)
        : raw_(raw), destroy_(destroy), parents_(std::move(parents)), born_(forks) {}
    ~Box() { close(); }
    Box(const Box&) = delete;
    Box& operator=(const Box&) = delete;

    T* get() const { return raw_; }
    bool of_this_process() const { return born_ == forks.load(std::memory_order_relaxed); }
    bool usable() const { return raw_ != nullptr && of_this_process(); }
    // 0, or the errno with which the call refused; then the object stays as it was.
    int close() {
        if (raw_ == nullptr) return 0;
        const int answer = of_this_process() ? destroy_(raw_) : 0;
        if (answer != 0) return answer == -1 ? errno : answer;
        raw_ = nullptr;
        parents_.clear();
        return 0;
    }

  private:
    T* raw_;
    Destroy destroy_;
    Parents parents_;
    unsigned born_;
};

using ContextBox = Box<Context>;
using ChannelBox = Box<CompChannel>;
using PdBox = Box<Pd>;
using MrBox = Box<Mr>;
using CqBox = Box<Cq>;
using QpBox = Box<Qp>;

inline std::shared_ptr<ContextBox> own(Context* raw, const Library* calls) {
    return std::make_shared<ContextBox>(raw, calls->close_device, ContextBox::Parents{});
}
inline std::shared_ptr<ChannelBox> own(CompChannel* raw, const Library* calls,
                                       const std::shared_ptr<ContextBox>& context) {
    return std::make_shared<ChannelBox>(raw, calls->destroy_comp_channel, ChannelBox::Parents{context});
}
inline std::shared_ptr<PdBox> own(Pd* raw, const Library* calls, const std::shared_ptr<ContextBox>& context) {
    return std::make_shared<PdBox>(raw, calls->dealloc_pd, PdBox::Parents{context});
}
inline std::shared_ptr<MrBox> own(Mr* raw, const Library* calls, const std::shared_ptr<PdBox>& pd) {
    return std::make_shared<MrBox>(raw, calls->dereg_mr, MrBox::Parents{pd});
}
inline std::shared_ptr<CqBox> own(Cq* raw, const Library* calls, const std::shared_ptr<ContextBox>& context,
                                  const std::shared_ptr<ChannelBox>& channel) {
    return std::make_shared<CqBox>(raw, calls->destroy_cq, CqBox::Parents{context, channel});
}
inline std::shared_ptr<QpBox> own(Qp* raw, const Library* calls, const std::shared_ptr<PdBox>& pd,
                                  const std::shared_ptr<CqBox>& send_cq, const std::shared_ptr<CqBox>& recv_cq) {
    return std::make_shared<QpBox>(raw, calls->destroy_qp, QpBox::Parents{pd, send_cq, recv_cq});
}

}  // namespace rdmakit::verbs
