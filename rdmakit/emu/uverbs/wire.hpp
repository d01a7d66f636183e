// wire.hpp — the wire between processes: a file that all map, with a ring of bytes from each process to each other.
// Leans on config.cuh. A ring has one writer and one reader, so nobody holds a lock that its death would leave behind.
// Who is there is said by a lock on one byte of the file for each process (fcntl, open file description locks): the
// kernel takes it back when the process ends, however that happens. The file lies in the tree and goes with it.
//
// A number is never given out twice: what is under way to a process that is gone finds nobody.
#pragma once
#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::uverbs {

using namespace rdmakit;

constexpr u32 kProcesses = 512;  // in the life of one tree
constexpr u32 kSharedCounters = 16 * 4 * 16;  // HCAs, ports, counters of each

class Wire {
  public:
    // Joins at `path`. Without such a file, or without a number left, one is alone: number() is kAlone.
    explicit Wire(const std::string& path);
    static constexpr u32 kAlone = ~0u;
    u32 number() const { return number_; }

    bool alive(u32 number) const;
    // Queues a message of two parts to a process; false if it is gone.
    bool send(u32 to, const void* head, std::size_t head_bytes, const void* tail, std::size_t tail_bytes);
    // Moves what there is room for, hands over what has come whole. True if anything moved.
    using Taker = std::function<void(u32 from, const u8* message, std::size_t bytes)>;
    bool move(const Taker& taker);
    // Forgets what is queued to, and half received from, a process that is gone.
    void forget(u32 number);

    // This process's own counters, which others sum up.
    std::atomic<u64>* counters() const;
    // Of all processes there have been, at `path`; 0 where there is none.
    static u64 sum(const std::string& path, u32 counter);

    // The child of a fork has no number of its own; the parent's lock must not live on in it.
    void leave();

    struct Registry;

  private:
    struct Ring;
    struct Incoming {
        Ring* ring = nullptr;
        u64 wanted = 0;  // bytes of the message under way; 0: its length comes next
        std::vector<u8> bytes;
    };
    struct Outgoing {
        Ring* ring = nullptr;
        std::deque<std::vector<u8>> messages;
        std::size_t sent = 0;  // of the first
    };
    Ring* map_ring(u32 index) const;
    bool push(u32 to, Outgoing& out);
    bool pull(u32 from, Incoming& in, const Taker& taker);

    int fd_ = -1;
    u32 number_ = kAlone;
    Registry* registry_ = nullptr;
    std::map<u32, Incoming> incoming_;
    std::map<u32, Outgoing> outgoing_;
};

}  // namespace rdmakit::uverbs
