// Host memory of aclrtMallocHost in a child of fork(): the child's own, as the program's other memory is,
// though the parent shares it with its daemon.
#pragma once

#include <cstddef>

#include "flexnpu/client/session.hpp"

namespace flexnpu::client {

// From this size on a region's file stays open, and a child maps it privately: it costs nothing, but until
// the child writes to a page it sees what the parent and its device write there after the fork. Smaller ones
// are copied before the fork.
inline constexpr size_t kMappedInChild = size_t(16) << 20;

// The three handlers of pthread_atfork. `ranges` must not change in number or place meanwhile; what they hold
// cannot.
void keep_host_memory(const std::vector<Ranges<HostRegion>*>& ranges);
void release_host_memory();
void take_host_memory();

}  // namespace flexnpu::client
