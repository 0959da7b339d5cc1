#include "flexnpu/emulator/runtime/virtual_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>
#include <mutex>
#include <vector>

#include "flexnpu/emulator/runtime/runtime.hpp"

namespace flexnpu::emulator {

namespace {

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }
void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

// Nothing behind these addresses: for a reservation, and for what was unmapped. An operator that still runs
// there when its memory is unmapped must not end the program, so its pages are scratch.
void* blank(void* p, uint64_t size, int protection) {
    int fixed = p != nullptr ? MAP_FIXED : 0;
    void* area = mmap(p, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    if (area != MAP_FAILED) {
        madvise(area, size, MADV_DONTFORK);
    }
    return area;
}

}  // namespace

std::shared_ptr<PhysicalMemory> PhysicalMemory::allocate(std::shared_ptr<Device> device, uint64_t size) {
    std::optional<uint64_t> offset = device->memory.allocate_physical(size);
    if (!offset) {
        return nullptr;
    }
    int fd = device->memory.fd();
    return std::make_shared<PhysicalMemory>(std::move(device), fd, *offset, size, nullptr);
}

PhysicalMemory::PhysicalMemory(std::shared_ptr<Device> device, int fd, uint64_t offset, uint64_t size,
                               std::function<void()> closed)
    : device(std::move(device)), fd(fd), offset(offset), size(size), closed_(std::move(closed)) {}

PhysicalMemory::~PhysicalMemory() {
    if (closed_) {
        close(fd);
        closed_();
    } else {
        device->memory.release_physical(offset);
    }
}

void* AddressSpace::reserve(uint64_t size, void* hint) {
    size = round_up(size, Arena::kGranularity);
    // Room for the alignment, which is then given back.
    auto* area = static_cast<char*>(mmap(hint, size + Arena::kGranularity, PROT_NONE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (area == MAP_FAILED) {
        return nullptr;
    }
    uint64_t begin = reinterpret_cast<uint64_t>(area), aligned = round_up(begin, Arena::kGranularity);
    if (aligned > begin) {
        munmap(area, aligned - begin);
    }
    munmap(pointer(aligned + size), begin + Arena::kGranularity - aligned);
    madvise(pointer(aligned), size, MADV_DONTFORK);
    std::unique_lock lock(mutex_);
    reservations_[aligned] = size;
    return pointer(aligned);
}

AddressSpace::Answer AddressSpace::release(void* p) {
    std::unique_lock lock(mutex_);
    auto at = reservations_.find(reinterpret_cast<uint64_t>(p));
    if (at == reservations_.end()) {
        return Answer::Unknown;
    }
    auto piece = pieces_.lower_bound(at->first);
    if (piece != pieces_.end() && piece->first < at->first + at->second) {
        return Answer::Busy;
    }
    munmap(p, at->second);
    reservations_.erase(at);
    return Answer::Done;
}

AddressSpace::Answer AddressSpace::map(void* p, uint64_t size, uint64_t offset,
                                       std::shared_ptr<PhysicalMemory> memory) {
    auto address = reinterpret_cast<uint64_t>(p);
    std::unique_lock lock(mutex_);
    auto at = reservations_.upper_bound(address);
    if (at == reservations_.begin()) {
        return Answer::Unknown;
    }
    --at;
    uint64_t into = address - at->first;
    if (into >= at->second || size > at->second - into) {
        return Answer::Unknown;
    }
    if (size == 0 || offset > memory->size || size > memory->size - offset) {
        return Answer::OutOfRange;
    }
    auto next = pieces_.lower_bound(address);
    if (next != pieces_.end() && next->first < address + size) {
        return Answer::Busy;
    }
    if (next != pieces_.begin() && std::prev(next)->first + std::prev(next)->second.size > address) {
        return Answer::Busy;
    }
    void* area = mmap(p, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, memory->fd,
                      off_t(memory->offset + offset));
    if (area == MAP_FAILED) {
        return Answer::NoRoom;
    }
    madvise(area, size, MADV_DONTFORK);
    pieces_[address] = {size, std::move(memory)};
    return Answer::Done;
}

AddressSpace::Answer AddressSpace::unmap(void* p) {
    std::shared_ptr<PhysicalMemory> last;  // ends outside the lock
    std::unique_lock lock(mutex_);
    auto at = pieces_.find(reinterpret_cast<uint64_t>(p));
    if (at == pieces_.end() || at->second.attached) {
        return Answer::Unknown;
    }
    if (blank(p, at->second.size, PROT_READ | PROT_WRITE) == MAP_FAILED) {
        return Answer::NoRoom;
    }
    last = std::move(at->second.memory);
    pieces_.erase(at);
    lock.unlock();
    return Answer::Done;
}

void* AddressSpace::attach(std::shared_ptr<PhysicalMemory> memory) {
    uint64_t lead = memory->offset % Arena::kPage;
    uint64_t size = memory->size;
    void* area = mmap(nullptr, lead + size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory->fd,
                      off_t(memory->offset - lead));
    if (area == MAP_FAILED) {
        return nullptr;
    }
    madvise(area, lead + size, MADV_DONTFORK);
    uint64_t address = reinterpret_cast<uint64_t>(area) + lead;
    std::unique_lock lock(mutex_);
    pieces_[address] = {size, std::move(memory), lead, true};
    return pointer(address);
}

AddressSpace::Answer AddressSpace::detach(void* p) {
    std::shared_ptr<PhysicalMemory> last;
    std::unique_lock lock(mutex_);
    auto at = pieces_.find(reinterpret_cast<uint64_t>(p));
    if (at == pieces_.end() || !at->second.attached) {
        return Answer::Unknown;
    }
    const Piece& piece = at->second;
    munmap(pointer(at->first - piece.lead), piece.lead + piece.size);
    last = std::move(at->second.memory);
    pieces_.erase(at);
    lock.unlock();
    return Answer::Done;
}

std::map<uint64_t, AddressSpace::Piece>::const_iterator AddressSpace::piece_of(uint64_t address) const {
    auto at = pieces_.upper_bound(address);
    if (at == pieces_.begin()) {
        return pieces_.end();
    }
    --at;
    return address - at->first < at->second.size ? at : pieces_.end();
}

std::shared_ptr<Device> AddressSpace::owner(const void* p) const {
    auto address = reinterpret_cast<uint64_t>(p);
    std::shared_lock lock(mutex_);
    auto piece = piece_of(address);
    return piece != pieces_.end() ? piece->second.memory->device : nullptr;
}

bool AddressSpace::is_reserved(const void* p) const {
    auto address = reinterpret_cast<uint64_t>(p);
    std::shared_lock lock(mutex_);
    auto at = reservations_.upper_bound(address);
    return at != reservations_.begin() && address - std::prev(at)->first < std::prev(at)->second;
}

std::optional<Arena::Block> AddressSpace::find(const void* p) const {
    std::shared_lock lock(mutex_);
    auto piece = piece_of(reinterpret_cast<uint64_t>(p));
    if (piece == pieces_.end()) {
        return std::nullopt;
    }
    return Arena::Block{pointer(piece->first), piece->second.size};
}

std::shared_ptr<PhysicalMemory> AddressSpace::memory_at(const void* p) const {
    std::shared_lock lock(mutex_);
    auto piece = piece_of(reinterpret_cast<uint64_t>(p));
    return piece != pieces_.end() ? piece->second.memory : nullptr;
}

std::shared_ptr<PhysicalMemory> AddressSpace::mapped_at(const void* p) const {
    std::shared_lock lock(mutex_);
    auto piece = piece_of(reinterpret_cast<uint64_t>(p));
    return piece != pieces_.end() && !piece->second.attached ? piece->second.memory : nullptr;
}

bool AddressSpace::contains_range(const void* p, uint64_t size) const {
    auto address = reinterpret_cast<uint64_t>(p);
    std::shared_lock lock(mutex_);
    auto piece = piece_of(address);
    while (piece != pieces_.end()) {
        uint64_t end = piece->first + piece->second.size;
        if (size <= end - address) {
            return true;
        }
        size -= end - address;
        address = end;
        ++piece;
        // Attached memory is a world of its own, whatever lies next to it.
        if (piece == pieces_.end() || piece->first != end || piece->second.attached ||
            std::prev(piece)->second.attached) {
            return false;
        }
    }
    return false;
}

bool AddressSpace::is_mapped(const PhysicalMemory* memory) const {
    std::shared_lock lock(mutex_);
    for (const auto& [address, piece] : pieces_) {
        if (piece.memory.get() == memory) {
            return true;
        }
    }
    return false;
}

void AddressSpace::drop(const Device* device) {
    std::vector<std::shared_ptr<PhysicalMemory>> last;
    std::unique_lock lock(mutex_);
    for (auto at = pieces_.begin(); at != pieces_.end();) {
        if (at->second.memory->device.get() != device) {
            ++at;
            continue;
        }
        if (at->second.attached) {
            munmap(pointer(at->first - at->second.lead), at->second.lead + at->second.size);
        } else {
            blank(pointer(at->first), at->second.size, PROT_NONE);
        }
        last.push_back(std::move(at->second.memory));
        at = pieces_.erase(at);
    }
    lock.unlock();
}

}  // namespace flexnpu::emulator
