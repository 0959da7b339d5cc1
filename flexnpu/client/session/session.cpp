#include "flexnpu/client/session/session.hpp"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "acl.gen.h"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "fn_ids.gen.h"

namespace flexnpu::client {

namespace {

// Whether `file` has at least `bytes` bytes and keeps them: a mapping beyond a file's end would kill who
// touches it. Else errno says so.
bool holds(const File& file, size_t bytes) {
    struct stat status{};
    const int seals = fcntl(file.get(), F_GET_SEALS);
    if (fstat(file.get(), &status) == 0 && uint64_t(status.st_size) >= bytes && seals >= 0 &&
        (seals & F_SEAL_SHRINK))
        return true;
    errno = EBADMSG;
    return false;
}

void* map_shared(const File& file, size_t bytes) {
    if (!holds(file, bytes)) return MAP_FAILED;
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
}

}  // namespace

bool Session::connect(const std::string& path) {
    wire::Request request{};
    request.ask = wire::Ask::hello;
    request.table_hash = api::kTableHash;
    if (const char* quota = getenv("FLEXNPU_QUOTA"); quota && *quota) {
        char* end = nullptr;
        request.bytes = strtoull(quota, &end, 10);
        if (*end || request.bytes == 0) {
            fail(acl::RT_INTERNAL,
                 "FlexNPU: FLEXNPU_QUOTA is '%s': it must be a number of bytes; use flexnpu run --quota",
                 quota);
            return false;
        }
    }
    request.region = uint32_t(device_);
    Received got;
    if (!connection_.open(path, request, &got)) return false;
    doorbell_ = got.files[1].release();
    void* area = map_shared(got.files[0], wire::kSessionBytes);
    got.drop();
    if (area == MAP_FAILED) {
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map the session's memory: %s", strerror(errno));
        return false;
    }
    madvise(area, wire::kSessionBytes, MADV_DONTFORK);
    page_ = static_cast<wire::SessionPage*>(area);
    staging_ = static_cast<uint8_t*>(area) + wire::kSessionPageBytes;
    steps.publish_to(&page_->launches, page_->gated_ns, wire::kGatedLanes);
    std::memcpy(soc_, got.answer.soc, sizeof(soc_) - 1);
    return true;
}

void Session::ring_bell(wire::Doze from) {
    auto& doze = page_->doze;
    if (doze.load(std::memory_order_seq_cst) <= from) return;
    if (doze.exchange(wire::kAwake, std::memory_order_acq_rel) == wire::kAwake)
        return;  // another thread was first
    const uint64_t one = 1;
    // Not write(): that is a point of cancellation, and asynchronous calls are none.
    syscall(SYS_write, doorbell_, &one, sizeof(one));
}

void Session::abandon() {
    connection_.abandon();
    if (const int bell = std::exchange(doorbell_, -1); bell >= 0) ::close(bell);
    // Mappings are left out of the child by MADV_DONTFORK.
}

bool Session::join() {
    std::lock_guard lock(channel_mutex_);
    if (uses_ == 0) return false;
    uses_++;
    return true;
}

void Session::unmap() {
    for (Channel* c : all_) delete c;
    all_.clear();
    idle_.clear();
    munmap(page_, wire::kSessionBytes);
}

Channel* Session::take_channel() {
    {
        std::lock_guard lock(channel_mutex_);
        if (uses_ > 0 && !idle_.empty()) {
            Channel* c = idle_.back();
            idle_.pop_back();
            uses_++;
            return c;
        }
    }
    wire::Request request{};
    request.ask = wire::Ask::new_ring;
    Received got;
    if (!connection_.ask(request, 1, &got)) return nullptr;
    wire::RingMap map;
    const bool ok = holds(got.files[0], wire::kRingFileBytes) && map.open(got.files[0].get());
    const int error = errno;
    got.drop();
    if (!ok) {
        connection_.give_back(got.answer);
        fail(acl::RT_INTERNAL, "FlexNPU: cannot map a ring: %s", strerror(error));
        return nullptr;
    }
    madvise(map.base(), wire::kRingHeaderBytes + 2 * wire::kRingBytes, MADV_DONTFORK);
    auto* c = new Channel(*this, std::move(map));
    std::unique_lock lock(channel_mutex_);
    if (uses_ == 0) {
        lock.unlock();
        delete c;
        gone();
        return nullptr;
    }
    uses_++;
    all_.push_back(c);
    return c;
}

void Session::give_channel(Channel* channel) {
    std::lock_guard lock(channel_mutex_);
    idle_.push_back(channel);
}

bool Session::map_host(size_t bytes, HostRegion* out) {
    const NoCancel whole;
    wire::Request request{};
    request.ask = wire::Ask::host_memory;
    request.bytes = bytes;
    Received got;
    if (!connection_.ask(request, 1, &got)) return false;
    void* area = map_shared(got.files[0], bytes);
    if (area == MAP_FAILED) {
        const int error = errno;
        got.drop();
        connection_.give_back(got.answer);
        fail(acl::RT_MEMORY_ALLOCATION, "FlexNPU: cannot map %zu bytes of host memory: %s", bytes,
             strerror(error));
        return false;
    }
    *out = {reinterpret_cast<uint64_t>(area), bytes, got.answer.number,
            bytes < kMappedInChild ? -1 : got.files[0].release()};
    host.add(*out);
    return true;
}

bool Session::unmap_host(const HostRegion& region) {
    const NoCancel whole;
    wire::Request request{};
    request.ask = wire::Ask::free_host_memory;
    request.region = region.region;
    Received got;
    const bool ok = connection_.ask(request, 0, &got);
    got.drop();
    if (region.file >= 0) ::close(region.file);
    munmap(reinterpret_cast<void*>(region.address), region.bytes);
    return ok;
}

}  // namespace flexnpu::client
