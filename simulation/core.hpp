// Virtual time: requests, engines' schedulers and hosts, the gate and the device, as one discrete-event
// model.
//
// The gate is the daemon's own (flexnpu/gate), the device is flexnpu/device. Everything happens in the order
// of its time, and what happens at one time in the order in which it was foreseen: the same input gives the
// same output. Each engine has one stream, which is one lane of the gate; lanes have the engines' numbers.
//
// A host schedules a step, launches its operators one after the other, and answers when the device has ended
// the last. The dispatcher asks the gate after every event, as the daemon does, and takes `dispatch_us` an
// operator. Of an end the gate hears `completion_us` later; a step's answer takes `answer_us`.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <queue>
#include <stdexcept>
#include <vector>

#include "flexnpu/device/device.hpp"
#include "flexnpu/gate/gate.hpp"
#include "simulation/engine.hpp"

namespace flexnpu::simulation {

struct Options {
    double dispatch_us = 2;
    double completion_us = 40;
    double answer_us = 25;
    double transfer_rate = 392e3;  // of a cache between two engines, bytes a us
    double transfer_us = 1000;     // and before its first byte
    bool first_from_prefill =
        true;  // the client gets the first token from the engine that computed the prompt
};

// A step that has ended.
struct StepRecord {
    uint32_t engine = 0;
    double start_us = 0, end_us = 0;  // the host's first launch, the device's last end
    uint32_t prefill_tokens = 0, decode_tokens = 0, sequences = 0, operators = 0;
};

struct LaneCounts {
    uint64_t steps = 0, operators = 0, prefill_tokens = 0, decode_tokens = 0;
    uint64_t launched = 0, completed = 0;
    double device_us = 0;   // of its operators, from the first core to the end
    double longest_us = 0;  // the longest of these
    double held_us = 0;     // the longest hold of an operator by the gate
};

class Simulation {
public:
    // Throws std::invalid_argument: no engine that takes requests, or a prefill engine without a decode
    // engine.
    Simulation(const device::Chip& chip, const Shape& shape, const StaticTimes& times,
               const std::vector<EngineConfig>& engines, const Options& options);
    Simulation(const Simulation&) = delete;
    Simulation& operator=(const Simulation&) = delete;

    // A request that comes at `at_us`, which is not before the last one's; its number.
    uint32_t add(double at_us, uint32_t prompt, uint32_t output);
    // Simulates up to `until_us`; false when all requests have ended.
    bool run(double until_us);

    gate::Gate& gate() { return gate_; }
    uint64_t now_ns() const { return static_cast<uint64_t>(now_ * 1e3) + 1; }
    double now_us() const { return now_; }
    // The steps that ended since the last call.
    std::vector<StepRecord> take_steps();
    const std::vector<Request>& requests() const { return requests_; }
    const device::Device& device() const { return device_; }
    const LaneCounts& counts(uint32_t engine) const { return engines_.at(engine).counts; }
    const Scheduler& scheduler(uint32_t engine) const { return engines_.at(engine).scheduler; }
    size_t in_flight(uint32_t engine) const { return engines_.at(engine).steps.size(); }
    size_t engines() const { return engines_.size(); }

    struct Parked {
        double token_us = 0;  // tokens of a cache that waited for their decode engine, times for how long
        uint64_t most = 0;    // at once
        uint64_t now = 0;
    };
    const Parked& parked() const { return parked_; }
    uint64_t ended() const { return ended_; }
    uint64_t operators() const { return device_.use().kernels; }

private:
    enum class Kind : uint8_t { Issue, Complete, Answer, Transferred, Wake };
    struct Event {
        double at_us;
        uint64_t serial;
        Kind kind;
        uint32_t number;  // of the engine, or of the request
        uint64_t ticket = 0;
        double measured_us = -1;
        bool operator>(const Event& other) const {
            return at_us != other.at_us ? at_us > other.at_us : serial > other.serial;
        }
    };
    struct Flight {
        Plan plan;
        Step step;
        uint64_t first = 0;  // ticket of its first operator
        uint32_t issued = 0;
        double start_us = 0, end_us = 0;
        std::vector<uint8_t> marks;  // what the gate asked for, by operator
    };
    struct Engine {
        EngineConfig config;
        Scheduler scheduler;
        uint32_t stream = 0;
        std::deque<Flight> steps;  // that have not been answered, oldest first
        bool launching = false;    // the host launches the newest of them
        uint64_t ticket = 0;
        LaneCounts counts;
    };

    void at(double when_us, Kind kind, uint32_t number, uint64_t ticket = 0, double measured_us = -1);
    void arrive(uint32_t number);
    void begin(uint32_t engine);
    void issue(uint32_t engine);
    void pump();
    void device_ended(const device::Completion& end);
    void answer(uint32_t engine);
    void token(uint32_t engine, uint32_t number);
    void transferred(uint32_t number);
    void handle(const Event& event);
    void park(int64_t tokens);
    Engine& of_stream(uint32_t stream) { return engines_[stream]; }

    const Shape shape_;
    const StaticTimes times_;
    const Options options_;
    gate::Gate gate_;
    device::Device device_;
    std::vector<Request> requests_;
    std::deque<Engine> engines_;
    uint32_t entry_ = 0;
    std::optional<uint32_t> decode_;  // where a prefill engine's requests go on
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    uint64_t serial_ = 0;
    uint32_t arrived_ = 0;
    uint64_t ended_ = 0;
    double now_ = 0;
    double dispatcher_free_us_ = 0;
    double wake_us_ = device::kNever;
    std::vector<StepRecord> records_;
    Parked parked_;
    double parked_since_us_ = 0;
    std::vector<uint32_t> pulls_;
};

}  // namespace flexnpu::simulation
