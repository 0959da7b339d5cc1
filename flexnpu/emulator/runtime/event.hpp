// Events: a record marks a place in a stream; others wait for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "flexnpu/emulator/runtime/clock.hpp"
#include "flexnpu/emulator/runtime/shared_device.hpp"

namespace flexnpu::emulator {

// Something that must be told when an event may have become complete.
class Waiter {
public:
    virtual ~Waiter() = default;
    virtual void wake() = 0;
};

struct CaptureMark;

// Records are numbered as they are called; a wait is for the number that was the last at its own call,
// whatever streams other records of the event went to. An event that was never recorded, or was reset since,
// holds nobody up. An external event is a flag besides: a wait or reset with the number kExternalRecord is
// for whatever record comes.
inline constexpr uint64_t kExternalRecord = UINT64_MAX;

class Event {
public:
    explicit Event(uint32_t flags, uint32_t id) : flags(flags), id(id) {}
    const uint32_t flags;
    const uint32_t id;
    int32_t device = -1;  // whose streams record it; those of others may wait for it

    // Of an event between processes: the place in the device's page that its owner writes and others read. An
    // event that was opened (`theirs`) can be waited for and queried; it is its owner's to record.
    struct Between {
        std::shared_ptr<void> keep;  // what owns the page
        DevicePage::IpcEvent* slot = nullptr;
        uint64_t id = 0;
        bool theirs = false;
    };
    Between between;
    DevicePlace place;  // among the device's events
    ~Event() {
        if (between.slot != nullptr && !between.theirs) {
            between.slot->id = 0;
        }
    }

    // At the call of record: its number.
    uint64_t next_record();
    // The number that a wait called now is for; 0: none.
    uint64_t current() const;
    // When a stream reaches the record: `device_ns` is the device's time of it.
    // `aborted`: the stream was emptied, and the record with it.
    void complete(uint64_t record, uint64_t device_ns, bool aborted = false);
    // When a stream reaches a reset that was called while `record` was the last.
    void reset(uint64_t record);

    bool is_complete(uint64_t record) const;
    // Whether a record was called and the last one is complete.
    bool recorded_and_complete() const;
    // Device time of the last record, if it is complete.
    std::optional<uint64_t> timestamp() const;
    // Device time of a complete record; none when many others have come since.
    std::optional<uint64_t> timestamp(uint64_t record) const;
    // Blocks until `record` is complete; false at the deadline.
    bool wait(uint64_t record, std::optional<Clock::time_point> deadline);
    bool aborted(uint64_t record) const;

    // Calls waiter.wake() at the next completion unless remove_waiter comes first.
    void add_waiter(Waiter* waiter);
    void remove_waiter(Waiter* waiter);

    // Waits in streams that have not been passed yet.
    std::atomic<uint32_t> pending_waits{0};

    // Set while the last record was called on a stream that captures; `mark`, under the captures' lock, says
    // where.
    std::atomic<bool> captured{false};
    std::shared_ptr<CaptureMark> mark;

private:
    static constexpr size_t kKept = 16;
    struct Completed {
        uint64_t record = 0;
        uint64_t device_ns = 0;
    };

    bool is_complete_locked(uint64_t record) const;
    std::optional<uint64_t> timestamp_locked(uint64_t record) const;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t recorded_ = 0;
    uint64_t reset_ = 0;
    uint64_t aborted_ = 0;  // the last record whose stream was emptied
    uint64_t reached_ = 0;  // the greatest complete record, and its time
    uint64_t reached_ns_ = 0;
    std::vector<uint64_t> pending_;    // records that are not complete: few, most often one
    Completed completed_[kKept] = {};  // the last ones, by record modulo kKept
    std::vector<Waiter*> waiters_;
};

}  // namespace flexnpu::emulator
