// event_file.hpp — a file descriptor from which events are read: asynchronous ones, or those of a completion channel.
// Leans on machine.hpp for the lock. As in the kernel's uverbs_main.c: what has been read of an object is counted, and
// destroying the object takes back what has not, since ibv_destroy_* waits for the acknowledgement of the former.
//
// Bytes in a socket say how many events wait, so that poll(2), select(2) and O_NONBLOCK behave; events lie here.
#pragma once
#include <sys/types.h>

#include <deque>
#include <memory>
#include <vector>

#include "machine.hpp"

namespace rdmakit::uverbs {

class EventFile {
  public:
    // A new one; null when there is no descriptor left.
    static std::shared_ptr<EventFile> create();
    // The one whose descriptor the application has; null for any other descriptor.
    static std::shared_ptr<EventFile> at(int fd);
    // Cheap: most descriptors are none.
    static bool is_one(int fd);
    // The application has closed it.
    static void forget(int fd);

    ~EventFile();
    int fd() const { return fd_; }
    // Queues an event of `object`; *count goes up when it is read.
    void push(const void* bytes, std::size_t size, const void* object, std::shared_ptr<u32> count);
    void take_back(const void* object);
    // Whether an event of it has not been read.
    bool waits(const void* object) const;
    // read(2): one event, or -1 with errno.
    ssize_t read(void* into, std::size_t size);

  private:
    EventFile(int fd, int other) : fd_(fd), other_(other) {}
    struct Event {
        std::vector<u8> bytes;
        const void* object;
        std::shared_ptr<u32> count;
    };
    const int fd_, other_;
    std::deque<Event> events_;
};

}  // namespace rdmakit::uverbs
