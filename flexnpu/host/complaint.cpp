#include "flexnpu/host/complaint.hpp"

#include <cstdio>
#include <mutex>
#include <set>
#include <string>

extern "C" void flexnpu_host_complain(const char* text) {
    static std::mutex mutex;
    static std::set<std::string> said;
    const std::lock_guard lock(mutex);
    // A program that tries again and again has other numbers in each text.
    constexpr size_t kMostTexts = 100;
    if (said.size() < kMostTexts && said.insert(text).second) {
        fprintf(stderr, "FlexNPU: %s\n", text);
    }
}
