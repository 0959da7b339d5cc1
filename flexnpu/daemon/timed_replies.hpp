// Answers that a deadline gives unless what was waited for comes first. Calls the timers and the count of
// failures. The dispatching thread's.
#pragma once

#include <memory>
#include <string>

#include "flexnpu/daemon/failures.hpp"
#include "flexnpu/daemon/timers.hpp"

namespace flexnpu::daemon {

class TimedReplies {
public:
    struct Timed {
        bool over = false;
        Timers::Id timer{};
    };
    TimedReplies(Timers& timers, Failures& failures) : timers_(timers), failures_(failures) {}

    // Answers at the deadline (of CLOCK_MONOTONIC) unless settle() comes first. Without a deadline (< 0)
    // there is nothing to settle: nullptr.
    std::shared_ptr<Timed> add(int64_t deadline_ns, const char* function, const Reply& reply) {
        if (deadline_ns < 0) return nullptr;
        auto t = std::make_shared<Timed>();
        t->timer = timers_.add(uint64_t(deadline_ns), [this, t, function, reply] {
            t->over = true;
            failures_.count_timeout();
            reply.fail({acl::RT_WAIT_TIMEOUT, std::string(function) + ": not over in time"});
        });
        return t;
    }
    // False: the deadline came first.
    bool settle(const std::shared_ptr<Timed>& t) {
        if (!t) return true;
        if (t->over) return false;
        t->over = true;
        timers_.cancel(t->timer);
        return true;
    }

private:
    Timers& timers_;
    Failures& failures_;
};

}  // namespace flexnpu::daemon
