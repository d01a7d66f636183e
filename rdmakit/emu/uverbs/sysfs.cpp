#include "sysfs.hpp"

#include <dirent.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <sstream>

namespace rdmakit::uverbs::sysfs {

std::string root() {
    const char* path = std::getenv("SYSFS_PATH");
    return path != nullptr ? path : "/sys";
}

std::string read(const std::string& path) {
    std::string text;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        char buffer[256];
        const std::size_t n = std::fread(buffer, 1, sizeof buffer, file);
        text.assign(buffer, n);
        std::fclose(file);
    }
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

std::vector<std::string> entries(const std::string& path) {
    std::vector<std::string> found;
    if (DIR* directory = opendir(path.c_str())) {
        while (const dirent* entry = readdir(directory))
            if (entry->d_name[0] != '.') found.push_back(entry->d_name);
        closedir(directory);
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<std::string> bonded(const std::string& net) {
    for (const std::string& netdev : entries(net)) {
        std::istringstream slaves(read(net + "/" + netdev + "/master/bonding/slaves"));
        const std::vector<std::string> found{std::istream_iterator<std::string>(slaves), {}};
        if (found.size() > 1) return found;
    }
    return {};
}

}  // namespace rdmakit::uverbs::sysfs
