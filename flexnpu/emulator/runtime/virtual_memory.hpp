// Addresses of device memory beyond the arena's own: reservations, physical memory mapped into them, and
// memory of other processes.
//
// Physical memory is a range of a memfd: of this process's arena, or of another process's that it exported.
// Mapping it is mapping that range of the file at another address, so that nothing is ever copied.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>

#include "flexnpu/emulator/runtime/memory.hpp"

namespace flexnpu::emulator {

struct Device;

// A range of device memory without an address. Goes back when nobody maps or holds it.
class PhysicalMemory {
public:
    // A range of the device's own arena, or null when the device is full. `size` is a multiple of
    // Arena::kGranularity.
    static std::shared_ptr<PhysicalMemory> allocate(std::shared_ptr<Device> device, uint64_t size);
    // A range of another process's arena; `closed` is called at the end. Takes over fd.
    PhysicalMemory(std::shared_ptr<Device> device, int fd, uint64_t offset, uint64_t size,
                   std::function<void()> closed);
    ~PhysicalMemory();
    PhysicalMemory(const PhysicalMemory&) = delete;
    PhysicalMemory& operator=(const PhysicalMemory&) = delete;

    const std::shared_ptr<Device> device;
    const int fd;
    const uint64_t offset;  // in the file
    const uint64_t size;
    bool imported() const { return bool(closed_); }

private:
    std::function<void()> closed_;
};

class AddressSpace {
public:
    enum class Answer { Done, Unknown, Busy, OutOfRange, NoRoom };

    // A range of addresses with nothing behind it, aligned to Arena::kGranularity; near `hint` if that is
    // free. Null: no room. Of no device yet: programs reserve before they choose one.
    void* reserve(uint64_t size, void* hint);
    // Busy: something is still mapped there.
    Answer release(void* p);

    // Unknown: [p, p+size) is not within one reservation. Busy: a part of it is mapped. OutOfRange: the
    // memory is shorter.
    Answer map(void* p, uint64_t size, uint64_t offset, std::shared_ptr<PhysicalMemory> memory);
    // `p` is where a piece begins. What a running operator still does there goes nowhere.
    Answer unmap(void* p);

    // Maps memory at a new address of its own, for [offset, offset + memory's size) which need not be at a
    // page's border.
    void* attach(std::shared_ptr<PhysicalMemory> memory);
    Answer detach(void* p);

    // The device of what is mapped at p.
    std::shared_ptr<Device> owner(const void* p) const;
    // Whether p is reserved, whatever is mapped there.
    bool is_reserved(const void* p) const;
    // The piece that holds p.
    std::optional<Arena::Block> find(const void* p) const;
    // What is mapped where p is.
    std::shared_ptr<PhysicalMemory> memory_at(const void* p) const;
    // Whether all of [p, p+size) is mapped, by one piece or by neighbours.
    bool contains_range(const void* p, uint64_t size) const;
    bool is_mapped(const PhysicalMemory* memory) const;
    // What is mapped where p is by map(), not by attach(); null otherwise.
    std::shared_ptr<PhysicalMemory> mapped_at(const void* p) const;

    // The device is closed: its pieces go.
    void drop(const Device* device);

private:
    struct Piece {
        uint64_t size;
        std::shared_ptr<PhysicalMemory> memory;
        uint64_t lead = 0;      // attached: bytes of the first page that are not part of it
        bool attached = false;  // has addresses of its own, not of a reservation
    };
    std::map<uint64_t, Piece>::const_iterator piece_of(uint64_t address) const;

    mutable std::shared_mutex mutex_;
    std::map<uint64_t, uint64_t> reservations_;  // address -> size
    std::map<uint64_t, Piece> pieces_;
};

}  // namespace flexnpu::emulator
