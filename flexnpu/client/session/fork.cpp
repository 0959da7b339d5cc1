#include "flexnpu/client/session/fork.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <utility>

namespace flexnpu::client {

namespace {

struct Kept {
    HostRegion region;
    void* copy;  // MAP_FAILED: none
};
// Of the fork that is under way: the locks that the handlers share allow one at a time.
struct Fork {
    std::vector<std::unique_lock<std::mutex>> locks;
    std::vector<Kept> regions;
};
Fork* fork_now = nullptr;

}  // namespace

void keep_host_memory(const std::vector<Ranges<HostRegion>*>& ranges) {
    fork_now = new Fork;
    for (Ranges<HostRegion>* r : ranges) {
        fork_now->locks.push_back(r->hold());
        for (const HostRegion& region : r->items()) {
            void* copy = MAP_FAILED;
            if (region.file < 0) {
                copy =
                    mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (copy != MAP_FAILED)
                    std::memcpy(copy, reinterpret_cast<const void*>(region.address), region.bytes);
            }
            fork_now->regions.push_back({region, copy});
        }
    }
}

void release_host_memory() {
    for (const Kept& k : fork_now->regions) {
        if (k.copy != MAP_FAILED) munmap(k.copy, k.region.bytes);
    }
    delete std::exchange(fork_now, nullptr);
}

void take_host_memory() {
    for (const Kept& k : fork_now->regions) {
        void* at = reinterpret_cast<void*>(k.region.address);
        void* got;
        if (k.region.file >= 0) {
            got = mmap(at, k.region.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, k.region.file, 0);
            ::close(k.region.file);
        } else {
            got = k.copy == MAP_FAILED
                      ? MAP_FAILED
                      : mremap(k.copy, k.region.bytes, k.region.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
        }
        // Without memory for it a touch must fail: what the child writes may not reach its parent.
        constexpr int kNothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        if (got == MAP_FAILED && mmap(at, k.region.bytes, PROT_NONE, kNothing, -1, 0) == MAP_FAILED)
            munmap(at, k.region.bytes);
    }
    delete std::exchange(fork_now, nullptr);
}

}  // namespace flexnpu::client
