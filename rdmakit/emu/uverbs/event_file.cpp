#include "event_file.hpp"

#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>

namespace rdmakit::uverbs {
namespace {

constexpr int kMaxFd = 4096;
std::atomic<bool> known[kMaxFd];

std::map<int, std::shared_ptr<EventFile>>& files() {
    static auto* const all = new std::map<int, std::shared_ptr<EventFile>>();
    return *all;
}

}  // namespace

std::shared_ptr<EventFile> EventFile::create() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return nullptr;
    std::shared_ptr<EventFile> made(new EventFile(ends[0], ends[1]));
    if (ends[0] >= kMaxFd) return nullptr;
    files()[ends[0]] = made;
    known[ends[0]].store(true, std::memory_order_release);
    return made;
}

std::shared_ptr<EventFile> EventFile::at(int fd) {
    const auto found = files().find(fd);
    return found == files().end() ? nullptr : found->second;
}

bool EventFile::is_one(int fd) { return fd >= 0 && fd < kMaxFd && known[fd].load(std::memory_order_acquire); }

void EventFile::forget(int fd) {
    known[fd].store(false, std::memory_order_release);
    files().erase(fd);
}

EventFile::~EventFile() { ::close(other_); }

void EventFile::push(const void* bytes, std::size_t size, const void* object, std::shared_ptr<u32> count) {
    const u8 token = 1;
    if (send(other_, &token, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) return;  // the application has closed its end
    const u8* const from = static_cast<const u8*>(bytes);
    events_.push_back({std::vector<u8>(from, from + size), object, std::move(count)});
}

void EventFile::take_back(const void* object) {
    for (auto event = events_.begin(); event != events_.end();) {
        u8 token;
        const bool of_it = event->object == object;
        // Without a token a reader is on its way to this event.
        if (of_it && recv(fd_, &token, 1, MSG_DONTWAIT) == 1)
            event = events_.erase(event);
        else
            ++event;
    }
}

bool EventFile::waits(const void* object) const {
    for (const Event& event : events_)
        if (event.object == object) return true;
    return false;
}

ssize_t EventFile::read(void* into, std::size_t size) {
    static const auto real = reinterpret_cast<ssize_t (*)(int, void*, size_t)>(dlsym(RTLD_NEXT, "read"));
    u8 token;
    const ssize_t got = real(fd_, &token, 1);  // waits, unless the application has set O_NONBLOCK
    if (got != 1) return got;
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    if (events_.empty()) {
        errno = EAGAIN;
        return -1;
    }
    const Event event = std::move(events_.front());
    events_.pop_front();
    ++*event.count;
    const std::size_t bytes = std::min(size, event.bytes.size());
    std::memcpy(into, event.bytes.data(), bytes);
    return static_cast<ssize_t>(bytes);
}

}  // namespace rdmakit::uverbs
