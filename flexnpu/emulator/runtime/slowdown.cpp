#include "flexnpu/emulator/runtime/slowdown.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "flexnpu/api/guest.hpp"

namespace flexnpu::emulator {

namespace {

bool is_factor(double value) { return value >= Slowdown::kLeast && value <= Slowdown::kMost; }

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
    throw std::runtime_error("FLEXNPU_EMU_SLOWDOWN=" + text + ": " + why);
}

const uint64_t* map_factor(const std::string& path) {
    int fd = guest::above_standard(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd < 0) {
        refuse(path, std::strerror(errno));
    }
    struct stat status{};
    bool whole = fstat(fd, &status) == 0 && status.st_size == sizeof(uint64_t);
    void* memory = whole ? mmap(nullptr, sizeof(uint64_t), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (memory == MAP_FAILED) {
        refuse(path, "must be a file of 8 bytes, a double");
    }
    return static_cast<const uint64_t*>(memory);
}

}  // namespace

Slowdown::Slowdown(const std::string& text) {
    if (text.find('/') != std::string::npos) {
        shared_ = map_factor(text);
        return;
    }
    char* end = nullptr;
    fixed_ = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !is_factor(fixed_)) {
        refuse(text, "must be a number from 0.001 to 1000, or the path of a file");
    }
}

double Slowdown::factor() const {
    if (shared_ == nullptr) {
        return fixed_;
    }
    double value = std::bit_cast<double>(__atomic_load_n(shared_, __ATOMIC_RELAXED));
    return is_factor(value) ? value : 1;
}

}  // namespace flexnpu::emulator
