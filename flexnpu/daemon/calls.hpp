// Calls to the dispatching thread from other threads.
//
// A call owns all its data: its function captures nothing, and its arguments are copied. So the caller may
// give up at any time and nothing dangles. A caller that gives up cancels the call: it is then never run. A
// result must be looked at, since a call that was not run has none.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace flexnpu::daemon {

enum class CallError : uint8_t {
    timed_out,  // not begun in time, and cancelled: it will not be run
    stopped,    // the dispatching thread does not run
    failed,     // it ended with an exception
};

// What came of a call: its result, or why there is none.
template <class R>
class [[nodiscard]] Outcome {
public:
    using Value = std::conditional_t<std::is_void_v<R>, std::monostate, R>;
    Outcome(Value value) : it_(std::move(value)) {}
    Outcome(CallError error) : it_(error) {}
    explicit operator bool() const { return it_.index() == 0; }
    Value& value() { return std::get<0>(it_); }
    CallError error() const { return std::get<1>(it_); }

private:
    std::variant<Value, CallError> it_;
};

// Whether a call is run or cancelled: whoever asks first decides. Any thread.
class CallTicket {
public:
    // True, once: the asker runs the call.
    bool begin() { return decide(State::begun); }
    // True: the call has not begun and will not be run.
    bool cancel() { return decide(State::cancelled); }
    bool waits() const { return state_.load(std::memory_order_acquire) == State::waiting; }

private:
    enum class State : uint8_t { waiting, begun, cancelled };
    bool decide(State to) {
        State from = State::waiting;
        return state_.compare_exchange_strong(from, to, std::memory_order_acq_rel);
    }
    std::atomic<State> state_{State::waiting};
};

// Whether `A` can be kept by a call: a copy that refers to nothing of its caller's.
template <class A>
inline constexpr bool kOwned = !std::is_pointer_v<A> && !std::is_reference_v<A>;
template <class T>
inline constexpr bool kOwned<std::reference_wrapper<T>> = false;

// Whether `F` refers to nothing of its caller's.
template <class F>
inline constexpr bool kNoCaptures = std::is_empty_v<F> || std::is_member_function_pointer_v<F> ||
                                    (std::is_pointer_v<F> && std::is_function_v<std::remove_pointer_t<F>>);

}  // namespace flexnpu::daemon
