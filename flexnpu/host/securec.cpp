// libc_sec.so and libmmpa.so: the vendor's bounded string functions and its names for the system's, as far as
// programs link them. A function that is given too little room writes an empty string, or nothing, and says
// so by its result.
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {

constexpr int kOverlap = 54 | 128, kRange = ERANGE | 128, kInvalid = EINVAL | 128;
constexpr size_t kMostString = 0x7fffffff, kMostMemory = 0x7fffffff;

bool overlap(const void* a, size_t n, const void* b, size_t m) {
    const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
    return x < y + m && y < x + n;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int strcpy_s(char* to, size_t room, const char* from) {
    if (room == 0 || room > kMostString) return ERANGE;
    if (to == nullptr) return EINVAL;
    if (from == nullptr) {
        to[0] = 0;
        return kInvalid;
    }
    const size_t n = strnlen(from, room);
    if (n == room) {
        to[0] = 0;
        return kRange;
    }
    if (to == from) return 0;
    if (overlap(to, n + 1, from, n + 1)) {
        to[0] = 0;
        return kOverlap;
    }
    std::memcpy(to, from, n + 1);
    return 0;
}

int memcpy_s(void* to, size_t room, const void* from, size_t n) {
    if (room == 0 || room > kMostMemory) return ERANGE;
    if (to == nullptr) return EINVAL;
    if (from == nullptr || n > room) {
        std::memset(to, 0, room);
        return from == nullptr ? kInvalid : kRange;
    }
    if (to == from || n == 0) return 0;
    if (overlap(to, n, from, n)) {
        std::memset(to, 0, room);
        return kOverlap;
    }
    std::memcpy(to, from, n);
    return 0;
}

// The characters written, or -1 where they would not have fitted.
int vsnprintf_s(char* to, size_t room, size_t most, const char* format, va_list arguments) {
    if (to == nullptr || format == nullptr || room == 0 || room > kMostString) return -1;
    const int n = vsnprintf(to, most < room ? most + 1 : room, format, arguments);
    if (n < 0) {
        to[0] = 0;
        return -1;
    }
    if (static_cast<size_t>(n) > most && most < room) return -1;  // cut, as asked for
    if (static_cast<size_t>(n) >= room) {
        to[0] = 0;
        return -1;
    }
    return n;
}

int32_t mmGetTid() { return static_cast<int32_t>(syscall(SYS_gettid)); }
}
#pragma GCC visibility pop
