// descriptors.hpp — which descriptors of this process are open devices; what becomes of them when it forks.
// Leans on open_device.hpp. A descriptor is one of /dev/null as far as the kernel knows.
#pragma once
#include <memory>

#include "open_device.hpp"

namespace rdmakit::uverbs::descriptors {

// Without a lock: most calls are of no concern here.
bool is_ours(int fd);
// Null, -1: none of ours.
std::shared_ptr<OpenDevice> device_of(int fd);
int number_of(int fd);
// `fd` stands for this device from now on; returns it. Negative: errno says why there is none.
int adopt(int fd, int number, std::shared_ptr<OpenDevice> device);
// `to` is a duplicate of `from`, as the kernel has it: of ours as well, if `from` is. Returns it.
int duplicated(int from, int to);
void release(int fd);
// Is this a UAR page of an open device?
bool own_page(const void* page);

}  // namespace rdmakit::uverbs::descriptors
