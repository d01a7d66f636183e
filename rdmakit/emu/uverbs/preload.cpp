// preload.cpp — what a process asks of /dev/infiniband/uverbsN is answered here: LD_PRELOAD, no root, no kernel module.
// Leans on descriptors.hpp and counters.hpp. Device files exist for every class/infiniband_verbs entry of the tree at SYSFS_PATH, which
// libibverbs reads by itself. Everything else goes to the C library untouched.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "counters.hpp"
#include "descriptors.hpp"

#define RDMAKIT_PRELOAD extern "C" __attribute__((visibility("default")))

namespace {

using rdmakit::uverbs::EventFile;
using rdmakit::uverbs::Machine;
using rdmakit::uverbs::OpenDevice;
using rdmakit::uverbs::descriptors::is_ours;
namespace descriptors = rdmakit::uverbs::descriptors;

constexpr char kFolder[] = "/dev/infiniband/uverbs";
constexpr int kMajor = 231, kFirstMinor = 192;  // IB_UVERBS_MAJOR, IB_UVERBS_BASE_MINOR of uverbs_main.c
template <class F>
F next(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

std::string attribute(int number, const char* name) {
    const char* root = std::getenv("SYSFS_PATH");
    char path[512], text[64] = "";
    if (root == nullptr) return "";
    std::snprintf(path, sizeof path, "%s/class/infiniband_verbs/uverbs%d/%s", root, number, name);
    if (std::FILE* file = std::fopen(path, "r")) {
        if (std::fgets(text, sizeof text, file) == nullptr) text[0] = '\0';
        std::fclose(file);
    }
    text[std::strcspn(text, "\n")] = '\0';
    return text;
}

// The N of /dev/infiniband/uverbsN if the tree has it, else -1.
int device_number(const char* path) {
    if (path == nullptr || std::strncmp(path, kFolder, sizeof kFolder - 1) != 0) return -1;
    char* end = nullptr;
    const long number = std::strtol(path + sizeof kFolder - 1, &end, 10);
    if (end == path + sizeof kFolder - 1 || *end != '\0' || number < 0 || number > 63) return -1;
    return attribute(static_cast<int>(number), "ibdev").empty() ? -1 : static_cast<int>(number);
}

// A counter's file holds what has been counted when it is opened; -1: `path` names none.
int open_counter(const char* path) {
    if (path == nullptr || std::getenv("SYSFS_PATH") == nullptr) return -1;
    if (Machine* const machine = Machine::if_any()) {
        const std::lock_guard<std::recursive_mutex> hold(machine->lock());
        machine->publish();
    }
    const std::string text = rdmakit::uverbs::counter_text(path);
    if (text.empty()) return -1;
    const int fd = memfd_create("counter", MFD_CLOEXEC);
    static const auto real_write = next<ssize_t (*)(int, const void*, size_t)>("write");
    if (fd >= 0 && real_write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size())) lseek(fd, 0, SEEK_SET);
    return fd;
}

int open_device(int number) {
    static const auto real = next<int (*)(const char*, int, ...)>("open");
    rdmakit::emu::Hca* const hca = Machine::here().find(attribute(number, "ibdev"));
    if (hca == nullptr) {
        errno = ENODEV;
        return -1;
    }
    return descriptors::adopt(real("/dev/null", O_RDWR | O_CLOEXEC), number, std::make_shared<OpenDevice>(hca));
}

template <class S>
void describe(S* into, int number) {
    std::memset(into, 0, sizeof *into);
    into->st_mode = S_IFCHR | 0666;
    into->st_rdev = makedev(kMajor, static_cast<unsigned>(kFirstMinor + number));
    into->st_nlink = 1;
}

mode_t mode_of(int flags, va_list list) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; }

}  // namespace

#define RDMAKIT_OPEN(name)                                                       \
    RDMAKIT_PRELOAD int name(const char* path, int flags, ...) {                 \
        static const auto real = next<int (*)(const char*, int, ...)>(#name);    \
        if (const int number = device_number(path); number >= 0) return open_device(number); \
        if (const int fd = open_counter(path); fd >= 0) return fd;               \
        va_list list;                                                            \
        va_start(list, flags);                                                   \
        const mode_t mode = mode_of(flags, list);                                \
        va_end(list);                                                            \
        return real(path, flags, mode);                                          \
    }
RDMAKIT_OPEN(open)
RDMAKIT_OPEN(open64)

#define RDMAKIT_OPENAT(name)                                                     \
    RDMAKIT_PRELOAD int name(int folder, const char* path, int flags, ...) {     \
        static const auto real = next<int (*)(int, const char*, int, ...)>(#name); \
        if (const int number = device_number(path); number >= 0) return open_device(number); \
        if (const int fd = open_counter(path); fd >= 0) return fd;               \
        va_list list;                                                            \
        va_start(list, flags);                                                   \
        const mode_t mode = mode_of(flags, list);                                \
        va_end(list);                                                            \
        return real(folder, path, flags, mode);                                  \
    }
RDMAKIT_OPENAT(openat)
RDMAKIT_OPENAT(openat64)

#define RDMAKIT_FOPEN(name)                                                      \
    RDMAKIT_PRELOAD std::FILE* name(const char* path, const char* mode) {        \
        static const auto real = next<std::FILE* (*)(const char*, const char*)>(#name); \
        if (const int fd = open_counter(path); fd >= 0) return fdopen(fd, "r");  \
        return real(path, mode);                                                 \
    }
RDMAKIT_FOPEN(fopen)
RDMAKIT_FOPEN(fopen64)

#define RDMAKIT_STAT(name, type)                                                 \
    RDMAKIT_PRELOAD int name(const char* path, struct type* into) {              \
        static const auto real = next<int (*)(const char*, struct type*)>(#name); \
        const int number = device_number(path);                                  \
        if (number < 0) return real(path, into);                                 \
        describe(into, number);                                                  \
        return 0;                                                                \
    }
RDMAKIT_STAT(stat, stat)
RDMAKIT_STAT(stat64, stat64)

#define RDMAKIT_FSTAT(name, type)                                                \
    RDMAKIT_PRELOAD int name(int fd, struct type* into) {                        \
        static const auto real = next<int (*)(int, struct type*)>(#name);        \
        if (!is_ours(fd)) return real(fd, into);                                 \
        describe(into, descriptors::number_of(fd));                                           \
        return 0;                                                                \
    }
RDMAKIT_FSTAT(fstat, stat)
RDMAKIT_FSTAT(fstat64, stat64)

// Before glibc 2.33 these were what stat and fstat called.
RDMAKIT_PRELOAD int __xstat(int version, const char* path, struct stat* into) {
    static const auto real = next<int (*)(int, const char*, struct stat*)>("__xstat");
    const int number = device_number(path);
    if (number < 0) return real(version, path, into);
    describe(into, number);
    return 0;
}
RDMAKIT_PRELOAD int __fxstat(int version, int fd, struct stat* into) {
    static const auto real = next<int (*)(int, int, struct stat*)>("__fxstat");
    if (!is_ours(fd)) return real(version, fd, into);
    describe(into, descriptors::number_of(fd));
    return 0;
}

RDMAKIT_PRELOAD int close(int fd) {
    static const auto real = next<int (*)(int)>("close");
    if (is_ours(fd)) {
        descriptors::release(fd);
    } else if (EventFile::is_one(fd)) {
        const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
        EventFile::forget(fd);
    }
    return real(fd);
}

RDMAKIT_PRELOAD int dup(int fd) {
    static const auto real = next<int (*)(int)>("dup");
    return descriptors::duplicated(fd, real(fd));
}
RDMAKIT_PRELOAD int dup2(int fd, int to) {
    static const auto real = next<int (*)(int, int)>("dup2");
    if (fd != to && is_ours(to)) close(to);
    return fd == to ? real(fd, to) : descriptors::duplicated(fd, real(fd, to));
}
RDMAKIT_PRELOAD int dup3(int fd, int to, int flags) {
    static const auto real = next<int (*)(int, int, int)>("dup3");
    if (fd != to && is_ours(to)) close(to);
    return descriptors::duplicated(fd, real(fd, to, flags));
}

#define RDMAKIT_FCNTL(name)                                                      \
    RDMAKIT_PRELOAD int name(int fd, int command, ...) {                         \
        static const auto real = next<int (*)(int, int, void*)>(#name);          \
        va_list list;                                                            \
        va_start(list, command);                                                 \
        void* const argument = va_arg(list, void*);                              \
        va_end(list);                                                            \
        const int result = real(fd, command, argument);                          \
        return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? descriptors::duplicated(fd, result) : result; \
    }
RDMAKIT_FCNTL(fcntl)
RDMAKIT_FCNTL(fcntl64)

RDMAKIT_PRELOAD ssize_t read(int fd, void* into, size_t size) {
    static const auto real = next<ssize_t (*)(int, void*, size_t)>("read");
    if (!EventFile::is_one(fd)) return real(fd, into, size);
    std::shared_ptr<EventFile> file;
    {
        const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
        file = EventFile::at(fd);
    }
    if (file) return file->read(into, size);
    errno = EBADF;
    return -1;
}

RDMAKIT_PRELOAD ssize_t write(int fd, const void* bytes, size_t size) {
    static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
    if (!is_ours(fd)) return real(fd, bytes, size);
    const std::shared_ptr<OpenDevice> device = descriptors::device_of(fd);
    const int error = device ? device->write(static_cast<const unsigned char*>(bytes), size) : EBADF;
    if (std::getenv("RDMAKIT_UVERBS_TRACE") != nullptr) {
        unsigned command = 0;
        std::memcpy(&command, bytes, size < sizeof command ? size : sizeof command);
        std::fprintf(stderr, "uverbs: command 0x%x, %zu bytes: %s\n", command, size, error ? std::strerror(error) : "ok");
    }
    if (error == 0) return static_cast<ssize_t>(size);
    errno = error;
    return -1;
}

RDMAKIT_PRELOAD int ioctl(int fd, unsigned long request, ...) {
    static const auto real = next<int (*)(int, unsigned long, void*)>("ioctl");
    va_list list;
    va_start(list, request);
    void* const argument = va_arg(list, void*);
    va_end(list);
    if (!is_ours(fd)) return real(fd, request, argument);
    const std::shared_ptr<OpenDevice> device = descriptors::device_of(fd);
    const int error = request != RDMA_VERBS_IOCTL ? ENOTTY : device ? device->ioctl(argument) : EBADF;
    if (request == RDMA_VERBS_IOCTL && std::getenv("RDMAKIT_UVERBS_TRACE") != nullptr) {
        const ib_uverbs_ioctl_hdr* const header = static_cast<const ib_uverbs_ioctl_hdr*>(argument);
        std::fprintf(stderr, "uverbs: object 0x%x method 0x%x, %u attributes: %s\n", header->object_id,
                     header->method_id, header->num_attrs, error ? std::strerror(error) : "ok");
    }
    if (error == 0) return 0;
    errno = error;
    return -1;
}

#define RDMAKIT_MMAP(name, offset_type)                                                                     \
    RDMAKIT_PRELOAD void* name(void* at, size_t size, int protection, int flags, int fd, offset_type offset) { \
        static const auto real = next<void* (*)(void*, size_t, int, int, int, offset_type)>(#name);         \
        if (!is_ours(fd)) return real(at, size, protection, flags, fd, offset);                             \
        const std::shared_ptr<OpenDevice> device = descriptors::device_of(fd);                                           \
        void* const page = device && size == 4096 ? device->map(static_cast<unsigned long long>(offset)) : nullptr; \
        if (page != nullptr) return page;                                                                   \
        const int file = device ? device->memory_file(static_cast<unsigned long long>(offset), size) : -1;  \
        if (file >= 0) return real(at, size, protection, flags, file, 0);                                   \
        errno = EINVAL;                                                                                     \
        return MAP_FAILED;                                                                                  \
    }
RDMAKIT_MMAP(mmap, off_t)
RDMAKIT_MMAP(mmap64, off64_t)

RDMAKIT_PRELOAD int munmap(void* at, size_t size) {
    static const auto real = next<int (*)(void*, size_t)>("munmap");
    if (size == 4096 && descriptors::own_page(at)) return 0;  // a UAR page stays the HCA's
    return real(at, size);
}

// Real RDMA devices are listed over netlink first; here there are only those of the tree.
RDMAKIT_PRELOAD int socket(int domain, int type, int protocol) {
    static const auto real = next<int (*)(int, int, int)>("socket");
    if (domain == AF_NETLINK && protocol == NETLINK_RDMA) {
        errno = EPROTONOSUPPORT;
        return -1;
    }
    return real(domain, type, protocol);
}
