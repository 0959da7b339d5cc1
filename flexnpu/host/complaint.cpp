#include "flexnpu/host/complaint.hpp"

#include <cstdio>
#include <mutex>
#include <set>
#include <string>

extern "C" void flexnpu_host_complain(const char* text) {
    static std::mutex mutex;
    static std::set<std::string> said;
    const std::lock_guard lock(mutex);
    if (said.insert(text).second) {
        fprintf(stderr, "FlexNPU: %s\n", text);
    }
}
