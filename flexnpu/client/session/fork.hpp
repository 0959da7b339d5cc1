// Host memory of aclrtMallocHost in a child of fork(): the child's own, as the program's other memory is,
// though the parent shares it with its daemon.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

#include "flexnpu/client/session/ranges.hpp"

namespace flexnpu::client {

// From this size on a region's file stays open, and a child maps it privately: it costs nothing, but until
// the child writes to a page it sees what the parent and its device write there after the fork. Smaller ones
// are copied before the fork.
inline constexpr size_t kMappedInChild = size_t(16) << 20;

// For a lock of the whole process, once, while the library is loaded: a fork waits for it, so that the child
// finds it free and what it guards whole. Nobody may wait for a daemon under such a lock.
void hold_over_fork(std::mutex& mutex);

// The three handlers of pthread_atfork. `ranges` must not change in number or place meanwhile; what they hold
// cannot.
void keep_host_memory(const std::vector<Ranges<HostRegion>*>& ranges);
void release_host_memory();
void take_host_memory();

}  // namespace flexnpu::client
