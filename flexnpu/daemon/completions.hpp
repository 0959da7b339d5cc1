// Waits for the completion markers of all lanes and reports them, each lane's in order.
//
// A thread of the pool waits for a lane's oldest marker in the vendor, which tells soonest. Lanes that find
// no thread, for their session has its share or the pool is full, are asked for by one thread that looks at
// all of them in turn: nothing that a lane waits for can wait for a thread. A wait in the vendor lasts
// kSliceMs at most, so that a lane that closes is let go and the threads go round among those who want one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "flexnpu/daemon/threads.hpp"
#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

class Completions {
public:
    struct Marker {
        void* end;
        void* start;        // with `start`, the device time between the two is measured
        uint64_t ticket;    // 0: a fence of the lane, not an operator
        bool call = false;  // the host function with this ticket
    };
    // Called on any thread, one marker of a lane after the other, with the time in us, or -1.
    using Done = std::function<void(const Marker&, double us)>;
    static constexpr int32_t kSliceMs = 100;

    // `enter` runs first on this object's own thread. Throws std::system_error without a thread.
    Completions(Vendor& vendor, Threads& threads, std::function<void()> enter);
    ~Completions();
    Completions(const Completions&) = delete;
    Completions& operator=(const Completions&) = delete;

    // One lane's markers.
    class Lane;
    std::shared_ptr<Lane> lane(std::shared_ptr<Threads::Group> group, Done done);
    void add(const std::shared_ptr<Lane>& lane, const Marker& marker);
    // Reports what is left as of unknown time, and returns when nobody looks at the lane any more.
    void close(const std::shared_ptr<Lane>& lane);

    void counters(std::map<std::string, uint64_t>* out) const;

private:
    using Lock = std::unique_lock<std::mutex>;
    void wait(const std::shared_ptr<Lane>& lane);
    void look_round();
    void look(Lane& lane, Lock& lock);
    void look_later_locked(const std::shared_ptr<Lane>& lane);
    void report(Lane& lane, const Marker& marker, bool reached);
    bool hand_over(const std::shared_ptr<Lane>& lane);

    Vendor& vendor_;
    Threads& threads_;
    mutable std::mutex mutex_;
    std::condition_variable asked_, let_go_;
    std::vector<std::shared_ptr<Lane>> looked_at_;  // those without a thread
    uint64_t without_thread_ = 0;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace flexnpu::daemon
