#include "flexnpu/emulator/runtime/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "flexnpu/api/guest.hpp"

namespace flexnpu::emulator {

namespace {

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }
uint64_t round_down(uint64_t value, uint64_t to) { return value / to * to; }

}  // namespace

Arena::Arena(SharedDevice& shared) : shared_(shared) {
    // Twice the capacity: the MMU of a device gathers scattered free pages, so fragments must not end an
    // allocation.
    span_ = round_up(shared.capacity() * 2, 2 << 20);
    fd_ = guest::above_standard(memfd_create("flexnpu-emu-memory", MFD_CLOEXEC));
    if (fd_ < 0 || ftruncate(fd_, off_t(span_)) != 0) {
        int error = errno;
        if (fd_ >= 0) {
            close(fd_);
        }
        throw std::runtime_error(std::string("cannot make the emulated device's memory: ") +
                                 std::strerror(error));
    }
    void* p = mmap(nullptr, span_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
    if (p == MAP_FAILED) {
        int error = errno;
        close(fd_);
        throw std::runtime_error("cannot reserve " + std::to_string(span_ >> 30) +
                                 " GiB of addresses for the emulated device's memory: " +
                                 std::strerror(error) + " (see ulimit -v and vm.overcommit_memory)");
    }
    base_ = static_cast<char*>(p);
    insert_free(0, span_);
}

Arena::~Arena() {
    if (base_ != nullptr) {
        shared_.give_memory(allocated_);
    }
    abandon();
}

void Arena::abandon() {
    if (base_ != nullptr) {
        munmap(base_, span_);
        close(fd_);
        base_ = nullptr;
        span_ = 0;
    }
}

void Arena::insert_free(uint64_t offset, uint64_t size) {
    free_.emplace(offset, size);
    free_by_size_.emplace(size, offset);
}

void Arena::erase_free(std::map<uint64_t, uint64_t>::iterator at) {
    free_by_size_.erase({at->second, at->first});
    free_.erase(at);
}

void* Arena::allocate(uint64_t size) {
    auto offset = take(size, kAlignment, false);
    return offset ? base_ + *offset : nullptr;
}

std::optional<uint64_t> Arena::allocate_physical(uint64_t size) { return take(size, kGranularity, true); }

std::optional<uint64_t> Arena::take(uint64_t size, uint64_t alignment, bool physical) {
    if (size > span_) {
        return std::nullopt;
    }
    size = round_up(std::max<uint64_t>(size, 1), kAlignment);
    give_kept();
    if (!shared_.take_memory(size)) {
        return std::nullopt;
    }
    std::unique_lock lock(mutex_);
    // With room for the alignment: whatever the offset of the gap is, all of them being multiples of
    // kAlignment.
    auto fit = free_by_size_.lower_bound({size + alignment - kAlignment, 0});
    if (fit == free_by_size_.end()) {
        shared_.give_memory(size);
        return std::nullopt;
    }
    auto [available, gap] = *fit;
    erase_free(free_.find(gap));
    uint64_t offset = round_up(gap, alignment);
    if (offset > gap) {
        insert_free(gap, offset - gap);
    }
    if (gap + available > offset + size) {
        insert_free(offset + size, gap + available - offset - size);
    }
    used_[offset] = {size, physical};
    allocated_ += size;
    return offset;
}

bool Arena::release(void* p) {
    return contains_address(p) && give(uint64_t(static_cast<char*>(p) - base_), false);
}

bool Arena::release_physical(uint64_t offset) { return give(offset, true); }

// What others had imported goes back when they have closed it.
void Arena::give_kept() {
    std::vector<uint64_t> kept;
    {
        std::unique_lock lock(mutex_);
        kept.swap(kept_);
    }
    for (uint64_t offset : kept) {
        give(offset, true);
    }
}

bool Arena::give(uint64_t offset, bool physical) {
    std::unique_lock lock(mutex_);
    auto at = used_.find(offset);
    if (at == used_.end() || at->second.physical != physical) {
        return false;
    }
    const uint64_t size = at->second.size;
    if (!shared_.end_exports(offset, size)) {
        // Other processes still have it: the program may no longer name it, and nobody else gets it.
        kept_.push_back(at->first);
        at->second.physical = true;
        return true;
    }
    used_.erase(at);
    allocated_ -= size;
    uint64_t begin = offset, end = offset + size;
    auto after = free_.lower_bound(offset);
    if (after != free_.end() && after->first == end) {
        end += after->second;
        auto next = std::next(after);
        erase_free(after);
        after = next;
    }
    if (after != free_.begin()) {
        auto before = std::prev(after);
        if (before->first + before->second == begin) {
            begin = before->first;
            erase_free(before);
        }
    }
    insert_free(begin, end - begin);
    // Give the pages back that hold nothing else now.
    uint64_t first = std::max(round_up(begin, kPage), round_down(offset, kPage));
    uint64_t last = std::min(round_down(end, kPage), round_up(offset + size, kPage));
    if (first < last) {
        madvise(base_ + first, last - first, MADV_REMOVE);
    }
    lock.unlock();
    shared_.give_memory(size);
    return true;
}

std::optional<Arena::Block> Arena::find(const void* p) const {
    if (!contains_address(p)) {
        return std::nullopt;
    }
    uint64_t offset = uint64_t(static_cast<const char*>(p) - base_);
    std::shared_lock lock(mutex_);
    auto at = used_.upper_bound(offset);
    if (at == used_.begin()) {
        return std::nullopt;
    }
    --at;
    if (at->second.physical || offset >= at->first + at->second.size) {
        return std::nullopt;
    }
    return Block{base_ + at->first, at->second.size};
}

bool Arena::contains_range(const void* p, uint64_t size) const {
    auto block = find(p);
    return block &&
           size <= block->size - uint64_t(static_cast<const char*>(p) - static_cast<char*>(block->base));
}

uint64_t Arena::allocated() const {
    std::shared_lock lock(mutex_);
    return allocated_;
}

}  // namespace flexnpu::emulator
