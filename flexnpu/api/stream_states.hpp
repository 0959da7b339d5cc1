// aclrtRegStreamStateCallback: functions of the program that hear of every stream that it creates, and before
// it is destroyed. Of explicit streams only: the default stream has no handle that could be told.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace flexnpu::api {

class StreamStates {
public:
    enum State : int { created = 1, destroying = 2 };
    using Callback = void (*)(void* stream, int state, void* argument);

    static StreamStates& get() {
        static auto* all = new StreamStates;
        return *all;
    }
    // One function a name; null takes it back. False: there is none of that name to take back.
    bool set(const char* name, Callback function, void* argument) {
        std::lock_guard lock(mutex_);
        if (!function) return callbacks_.erase(name) != 0;
        callbacks_[name] = {function, argument};
        return true;
    }
    // Without the lock: the functions may register others, and create streams.
    void tell(void* stream, State state) {
        std::vector<std::pair<Callback, void*>> now;
        {
            std::lock_guard lock(mutex_);
            for (const auto& [name, one] : callbacks_) now.push_back(one);
        }
        for (const auto& [function, argument] : now) function(stream, state, argument);
    }

private:
    std::mutex mutex_;
    std::map<std::string, std::pair<Callback, void*>> callbacks_;
};

}  // namespace flexnpu::api
