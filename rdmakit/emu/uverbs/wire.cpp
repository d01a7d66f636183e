#include "wire.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace rdmakit::uverbs {
namespace {

constexpr u64 kRingBytes = 1u << 18;
constexpr u64 kLongest = u64{1} << 32;  // of a message: a WQE of 2 GiB and its head

// Plain copies at any place of the ring.
void copy_in(u8* ring, u64 at, const u8* from, u64 bytes) {
    const u64 start = at % kRingBytes, first = std::min(bytes, kRingBytes - start);
    std::memcpy(ring + start, from, first);
    std::memcpy(ring, from + first, bytes - first);
}
void copy_out(const u8* ring, u64 at, u8* to, u64 bytes) {
    const u64 start = at % kRingBytes, first = std::min(bytes, kRingBytes - start);
    std::memcpy(to, ring + start, first);
    std::memcpy(to + first, ring, bytes - first);
}

struct flock byte_lock(short type, u32 number) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = number;
    lock.l_len = 1;
    return lock;
}

}  // namespace

// All zeros is the beginning: nobody has been here.
struct Wire::Registry {
    struct Process {
        std::atomic<u32> taken;                     // there has been one of this number
        std::atomic<u64> senders[kProcesses / 64];  // who has opened a ring to it
        std::atomic<u32> ring[kProcesses];          // by sender: which of the rings behind the registry
        std::atomic<u64> counters[kSharedCounters];
    };
    std::atomic<u32> rings;  // given out
    Process process[kProcesses];
};

struct Wire::Ring {
    alignas(64) std::atomic<u64> written;  // bytes, ever
    alignas(64) std::atomic<u64> read;
    alignas(4096) u8 bytes[kRingBytes];
};

namespace {

constexpr u64 kRings = (sizeof(Wire::Registry) + 4095) / 4096 * 4096;

// Makes the file at least so long. Two may do it at once, so nobody sets its length: that could shorten it.
bool reaches(int fd, u64 bytes) {
    struct stat now;
    if (fstat(fd, &now) != 0) return false;
    if (static_cast<u64>(now.st_size) >= bytes) return true;
    return pwrite(fd, "", 1, static_cast<off_t>(bytes - 1)) == 1;
}

}  // namespace

Wire::Wire(const std::string& path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) return;
    if (reaches(fd_, kRings)) {
        void* const at = mmap(nullptr, sizeof(Registry), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
        if (at != MAP_FAILED) registry_ = static_cast<Registry*>(at);
    }
    for (u32 number = 0; registry_ != nullptr && number < kProcesses; ++number) {
        if (registry_->process[number].taken.load(std::memory_order_acquire) != 0) continue;
        struct flock lock = byte_lock(F_WRLCK, number);
        if (fcntl(fd_, F_OFD_SETLK, &lock) != 0) continue;
        // Taken, and given back, between our look and our lock?
        if (registry_->process[number].taken.exchange(1, std::memory_order_acq_rel) != 0) {
            lock.l_type = F_UNLCK;
            fcntl(fd_, F_OFD_SETLK, &lock);
            continue;
        }
        number_ = number;
        return;
    }
    std::fprintf(stderr, "rdmakit uverbs: %s: no place on the wire between processes; peers in this one only\n", path.c_str());
    leave();
}

void Wire::leave() {
    number_ = kAlone;
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
}

bool Wire::alive(u32 number) const {
    if (number_ == kAlone || number >= kProcesses) return false;
    if (registry_->process[number].taken.load(std::memory_order_acquire) == 0) return false;
    struct flock lock = byte_lock(F_WRLCK, number);
    return fcntl(fd_, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

Wire::Ring* Wire::map_ring(u32 index) const {
    const u64 at = kRings + u64{index} * sizeof(Ring);
    if (!reaches(fd_, at + sizeof(Ring))) return nullptr;
    void* const memory = mmap(nullptr, sizeof(Ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(at));
    return memory == MAP_FAILED ? nullptr : static_cast<Ring*>(memory);
}

bool Wire::send(u32 to, const void* head, std::size_t head_bytes, const void* tail, std::size_t tail_bytes) {
    if (!alive(to)) return false;
    Outgoing& out = outgoing_[to];
    if (out.ring == nullptr) {
        const u32 index = registry_->rings.fetch_add(1, std::memory_order_relaxed);
        out.ring = map_ring(index);
        if (out.ring == nullptr) return false;
        registry_->process[to].ring[number_].store(index, std::memory_order_relaxed);
        registry_->process[to].senders[number_ / 64].fetch_or(u64{1} << number_ % 64, std::memory_order_acq_rel);
    }
    const u64 length = head_bytes + tail_bytes;
    std::vector<u8> message(sizeof length + length);
    std::memcpy(message.data(), &length, sizeof length);
    std::memcpy(message.data() + sizeof length, head, head_bytes);
    if (tail_bytes != 0) std::memcpy(message.data() + sizeof length + head_bytes, tail, tail_bytes);
    out.messages.push_back(std::move(message));
    push(to, out);
    return true;
}

bool Wire::push(u32, Outgoing& out) {
    bool moved = false;
    while (!out.messages.empty()) {
        const std::vector<u8>& message = out.messages.front();
        const u64 written = out.ring->written.load(std::memory_order_relaxed);
        const u64 room = kRingBytes - (written - out.ring->read.load(std::memory_order_acquire));
        const u64 bytes = std::min<u64>(room, message.size() - out.sent);
        if (bytes == 0) break;
        copy_in(out.ring->bytes, written, message.data() + out.sent, bytes);
        out.ring->written.store(written + bytes, std::memory_order_release);
        moved = true;
        out.sent += bytes;
        if (out.sent < message.size()) continue;
        out.messages.pop_front();
        out.sent = 0;
    }
    return moved;
}

bool Wire::pull(u32 from, Incoming& in, const Taker& taker) {
    bool moved = false;
    for (;;) {
        const u64 read = in.ring->read.load(std::memory_order_relaxed);
        const u64 there = in.ring->written.load(std::memory_order_acquire) - read;
        if (in.wanted == 0) {
            u64 length;
            if (there < sizeof length) return moved;
            copy_out(in.ring->bytes, read, reinterpret_cast<u8*>(&length), sizeof length);
            in.ring->read.store(read + sizeof length, std::memory_order_release);
            if (length == 0 || length > kLongest) return moved;  // not of our making
            in.wanted = length;
            in.bytes.clear();
            in.bytes.reserve(length);
            moved = true;
            continue;
        }
        const u64 bytes = std::min<u64>(there, in.wanted - in.bytes.size());
        if (bytes == 0) return moved;
        const std::size_t had = in.bytes.size();
        in.bytes.resize(had + bytes);
        copy_out(in.ring->bytes, read, in.bytes.data() + had, bytes);
        in.ring->read.store(read + bytes, std::memory_order_release);
        moved = true;
        if (in.bytes.size() < in.wanted) continue;
        in.wanted = 0;
        taker(from, in.bytes.data(), in.bytes.size());
    }
}

bool Wire::move(const Taker& taker) {
    if (number_ == kAlone) return false;
    bool moved = false;
    for (u32 word = 0; word < kProcesses / 64; ++word) {
        u64 senders = registry_->process[number_].senders[word].load(std::memory_order_acquire);
        for (; senders != 0; senders &= senders - 1) {
            const u32 from = word * 64 + static_cast<u32>(__builtin_ctzll(senders));
            Incoming& in = incoming_[from];
            if (in.ring == nullptr)
                in.ring = map_ring(registry_->process[number_].ring[from].load(std::memory_order_relaxed));
            if (in.ring != nullptr) moved |= pull(from, in, taker);
        }
    }
    for (auto& [to, out] : outgoing_) moved |= push(to, out);
    return moved;
}

void Wire::forget(u32 number) {
    const auto out = outgoing_.find(number);
    if (out == outgoing_.end()) return;
    out->second.messages.clear();
    out->second.sent = 0;
}

std::atomic<u64>* Wire::counters() const { return number_ == kAlone ? nullptr : registry_->process[number_].counters; }

u64 Wire::sum(const std::string& path, u32 counter) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    u64 total = 0;
    for (u32 number = 0; number < kProcesses && counter < kSharedCounters; ++number) {
        const auto at = [&](std::size_t offset) {
            return static_cast<off_t>(offsetof(Registry, process) + number * sizeof(Registry::Process) + offset);
        };
        u32 taken = 0;
        u64 value = 0;
        if (pread(fd, &taken, sizeof taken, at(offsetof(Registry::Process, taken))) != sizeof taken) break;
        if (taken == 0) continue;
        if (pread(fd, &value, sizeof value, at(offsetof(Registry::Process, counters) + counter * sizeof value)) ==
            sizeof value)
            total += value;
    }
    ::close(fd);
    return total;
}

}  // namespace rdmakit::uverbs
