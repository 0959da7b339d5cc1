// The lock of an emulated device's page, and what looking for it takes.
#pragma once

#include <dirent.h>
#include <pthread.h>
#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "flexnpu/emulator/runtime/shared_device.hpp"

namespace flexnpu::emulator {

[[noreturn]] inline void throw_errno(const std::string& what) {
    throw std::runtime_error(what + ": " + std::strerror(errno));
}

struct CloseDirectory {
    void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

class SharedDevice::Lock {
public:
    explicit Lock(DevicePage* page) : page_(page) {
        if (pthread_mutex_lock(&page_->mutex) == EOWNERDEAD) {
            // The holder died inside. Every change of the table is one word, so the table is as good as
            // before.
            pthread_mutex_consistent(&page_->mutex);
        }
    }
    ~Lock() { pthread_mutex_unlock(&page_->mutex); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

private:
    DevicePage* page_;
};

}  // namespace flexnpu::emulator
