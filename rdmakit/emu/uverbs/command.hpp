// command.hpp — a command to an open device: the core's request, behind it the driver's, and where the answers go.
// Leans on config.cuh for its number types. Three things make one: write(2), its extended form, and ioctl(2).
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "rdmakit/config.cuh"

namespace rdmakit::uverbs {

// Requests that are shorter than expected read as if zeros came behind, answers are cut to the room that there is: so
// old and new libraries understand each other (kernel drivers/infiniband/core/uverbs_cmd.c uverbs_request, uverbs_response).
struct Command {
    const u8* request = nullptr;
    std::size_t request_size = 0;
    const u8* driver = nullptr;
    std::size_t driver_size = 0;
    u8* response = nullptr;
    std::size_t response_size = 0;
    u8* driver_response = nullptr;
    std::size_t driver_response_size = 0;

    template <class T>
    T take() const {
        T value = {};
        std::memcpy(&value, request, std::min(sizeof value, request_size));
        return value;
    }
    template <class T>
    T take_driver(std::size_t core_size) const {
        T value = {};
        if (driver != nullptr) {
            std::memcpy(&value, driver, std::min(sizeof value, driver_size));
        } else if (request_size > core_size) {
            std::memcpy(&value, request + core_size, std::min(sizeof value, request_size - core_size));
        }
        return value;
    }
    template <class T>
    void give(const T& value) const {
        if (response != nullptr) std::memcpy(response, &value, std::min(sizeof value, response_size));
    }
    template <class T>
    void give_driver(const T& value, std::size_t core_size) const {
        if (driver_response != nullptr) {
            std::memcpy(driver_response, &value, std::min(sizeof value, driver_response_size));
        } else if (response != nullptr && response_size > core_size) {
            std::memcpy(response + core_size, &value, std::min(sizeof value, response_size - core_size));
        }
    }
};

}  // namespace rdmakit::uverbs
