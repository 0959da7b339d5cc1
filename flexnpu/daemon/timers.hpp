// Jobs of the dispatching thread for a later time. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

namespace flexnpu::daemon {

class Timers {
public:
    using Id = std::pair<uint64_t, uint64_t>;  // when, and which of those

    Id add(uint64_t at_ns, std::function<void()> job) {
        const Id id{at_ns, ++count_};
        jobs_.emplace(id, std::move(job));
        return id;
    }
    // Of one that has run already: nothing.
    void cancel(const Id& id) { jobs_.erase(id); }
    uint64_t next() const { return jobs_.empty() ? UINT64_MAX : jobs_.begin()->first.first; }
    // Runs what is due. A job may add and cancel others.
    void run(uint64_t now_ns) {
        while (next() <= now_ns) {
            const auto job = std::move(jobs_.begin()->second);
            jobs_.erase(jobs_.begin());
            job();
        }
    }
    void clear() { jobs_.clear(); }

private:
    std::map<Id, std::function<void()>> jobs_;
    uint64_t count_ = 0;
};

}  // namespace flexnpu::daemon
