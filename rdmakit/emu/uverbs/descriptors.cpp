#include "descriptors.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>

namespace rdmakit::uverbs::descriptors {
namespace {

constexpr int kMaxFd = 4096;

std::mutex lock;
std::atomic<bool> ours[kMaxFd];

struct Open {
    int number;
    std::shared_ptr<OpenDevice> device;
};
std::map<int, Open>& opened() {
    static auto* const all = new std::map<int, Open>();
    return *all;
}

// While a process forks nothing of ours is half done; its child begins anew.
void before_fork() {
    lock.lock();
    if (Machine* const machine = Machine::if_any()) machine->lock().lock();
}
void after_fork_here() {
    if (Machine* const machine = Machine::if_any()) machine->lock().unlock();
    lock.unlock();
}
void after_fork_there() {
    if (Machine* const machine = Machine::if_any()) {
        machine->leave();
        machine->lock().unlock();
    }
    lock.unlock();
}
[[maybe_unused]] const int forking = pthread_atfork(before_fork, after_fork_here, after_fork_there);

}  // namespace

bool is_ours(int fd) { return fd >= 0 && fd < kMaxFd && ours[fd].load(std::memory_order_acquire); }

std::shared_ptr<OpenDevice> device_of(int fd) {
    const std::lock_guard<std::mutex> hold(lock);
    const auto found = opened().find(fd);
    return found == opened().end() ? nullptr : found->second.device;
}

int number_of(int fd) {
    const std::lock_guard<std::mutex> hold(lock);
    const auto found = opened().find(fd);
    return found == opened().end() ? -1 : found->second.number;
}

int adopt(int fd, int number, std::shared_ptr<OpenDevice> device) {
    if (fd < 0) return fd;
    if (fd >= kMaxFd) {
        static const auto real = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, "close"));
        real(fd);
        errno = EMFILE;
        return -1;
    }
    const std::lock_guard<std::mutex> hold(lock);
    opened()[fd] = {number, std::move(device)};
    ours[fd].store(true, std::memory_order_release);
    return fd;
}

int duplicated(int from, int to) {
    if (to < 0 || !is_ours(from)) return to;
    return adopt(to, number_of(from), device_of(from));
}

void release(int fd) {
    std::shared_ptr<OpenDevice> last;  // closed when the lock is open again
    const std::lock_guard<std::mutex> hold(lock);
    ours[fd].store(false, std::memory_order_release);
    const auto found = opened().find(fd);
    if (found == opened().end()) return;
    last = std::move(found->second.device);
    opened().erase(found);
}

bool own_page(const void* page) {
    const std::lock_guard<std::mutex> hold(lock);
    for (const auto& [fd, open] : opened())
        if (open.device && open.device->owns(page)) return true;
    return false;
}

}  // namespace rdmakit::uverbs::descriptors
