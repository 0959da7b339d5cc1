// Whole numbers on the command lines of the measuring programs.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace flexnpu::bench {

// The number that `text` is, in decimal; ends the program with status 2 if it is none.
inline uint64_t number(const char* text) {
    char* end = nullptr;
    errno = 0;
    const uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != 0 || errno != 0) {
        fprintf(stderr, "%s is no whole number\n", text);
        exit(2);
    }
    return value;
}

}  // namespace flexnpu::bench
