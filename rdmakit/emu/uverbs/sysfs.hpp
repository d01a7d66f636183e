// sysfs.hpp — reading the tree that SYSFS_PATH names.
// Leans on nothing.
#pragma once
#include <string>
#include <vector>

namespace rdmakit::uverbs::sysfs {

std::string root();
// Without the newline at its end; "" if there is no such file.
std::string read(const std::string& path);
// Names in a folder, sorted.
std::vector<std::string> entries(const std::string& path);
// Network devices that the bond behind `net` (…/device/net) joins, in the order of their ports; none if there is no bond.
std::vector<std::string> bonded(const std::string& net);

}  // namespace rdmakit::uverbs::sysfs
