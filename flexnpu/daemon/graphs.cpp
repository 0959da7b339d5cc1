#include "flexnpu/daemon/graphs.hpp"

#include <algorithm>
#include <cstring>

namespace flexnpu::daemon {

namespace {

// Bytes of pageable memory that a session's graphs keep for their copies.
constexpr uint64_t kMaxKept = uint64_t(1) << 30;

}  // namespace

void Footprint::add(MemoryMap& memory, uint64_t address, uint64_t bytes) {
    if (bytes == 0) return;
    const auto range = memory.find(address);
    if (!range) return;
    auto [it, fresh] = spans_.try_emplace(range->address, MemoryMap::Span{address, bytes});
    if (fresh) return;
    const uint64_t end = std::max(it->second.address + it->second.bytes, address + bytes);
    it->second.address = std::min(it->second.address, address);
    it->second.bytes = end - it->second.address;
}

const MemoryMap::Span* Footprint::first_foreign(MemoryMap& memory) const {
    for (const auto& [allocation, span] : spans_) {
        if (!memory.holds(span.address, span.bytes)) return &span;
    }
    return nullptr;
}

void* Graph::host(uint64_t bytes) {
    void* p = nullptr;
    if (vendor.aclrtMallocHost(&p, bytes) != 0) return nullptr;
    buffers.push_back(p);
    return p;
}

void Graph::abandon() {
    if (!begun || closed) return;
    closed = true;
    Vendor::call(vendor.aclmdlRICaptureEnd, stream, &model);
}

int32_t Graph::destroy() {
    int32_t e = 0;
    if (model) {
        e = Vendor::call(vendor.aclmdlRIDestroy, model);
        if (e) return e;
        model = nullptr;
    }
    for (void* p : std::exchange(buffers, {})) vendor.aclrtFreeHost(p);
    workspaces.clear();
    old_workspaces.clear();
    regions.clear();
    binaries.clear();
    uses.clear();
    records.clear();
    return 0;
}

Graph* Lane::graph() const { return update ? update->graph.lock().get() : capture.get(); }

Footprint* footprint_of(Lane& lane) {
    if (lane.update) return &lane.update->footprint;
    if (lane.group) return &lane.group->footprint;
    return lane.capture ? &lane.capture->footprint : nullptr;
}

bool keep_bytes(Lane& lane, CopyItem& copy, const void* from, uint64_t bytes) {
    Graph* graph = lane.graph();
    if (!graph || bytes > kMaxKept - std::min(kMaxKept, lane.session->graph_bytes)) return false;
    void* kept = graph->host(bytes);
    if (!kept) return false;
    std::memcpy(kept, from, bytes);
    graph->kept += bytes;
    lane.session->graph_bytes += bytes;
    copy.from = reinterpret_cast<uint64_t>(kept);
    return true;
}

}  // namespace flexnpu::daemon
