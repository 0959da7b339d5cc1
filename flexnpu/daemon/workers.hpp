// The threads that all sessions share. Owns the pool, and what waits for the lanes' completion markers. Calls
// nothing but the vendor.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "flexnpu/daemon/completions.hpp"
#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/threads.hpp"

namespace flexnpu::daemon {

class Workers {
public:
    // `most`: threads of the pool.
    Workers(Vendor& vendor, int32_t device, size_t most) : vendor_(vendor), device_(device), most_(most) {}

    // Throws std::system_error when not even the least number of threads can be had.
    void start();
    // Waits for every job.
    void stop();

    // Makes the ring's calls, one after the other. For a ring whose session has ended: one that forgets them.
    // The dispatching thread's.
    Worker& of(Ring& ring);
    // Between start() and stop(), any thread.
    Threads& threads() { return *threads_; }
    Completions& completions() { return *completions_; }
    void counters(std::map<std::string, uint64_t>* out) const;

private:
    Vendor& vendor_;
    const int32_t device_;
    const size_t most_;
    std::unique_ptr<Threads> threads_;
    std::unique_ptr<Completions> completions_;
    Worker discarding_;
};

}  // namespace flexnpu::daemon
