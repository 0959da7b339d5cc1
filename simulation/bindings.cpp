// simulation._core: virtual time for policies in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>

#include "simulation/core.hpp"

namespace nb = nanobind;
using namespace flexnpu;
using namespace flexnpu::simulation;
using namespace nb::literals;

namespace {

std::string name_of(State state) {
    switch (state) {
        case State::Coming: return "coming";
        case State::Waiting: return "waiting";
        case State::Receiving: return "receiving";
        case State::Received: return "received";
        case State::Running: return "running";
        case State::Parked: return "parked";
        case State::Done: return "done";
        case State::Rejected: return "rejected";
    }
    return "";
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "Engines, hosts, the gate and the device in virtual time (simulation/core.hpp). Times in us.";

    nb::enum_<Role>(m, "Role")
        .value("Both", Role::Both)
        .value("Prefill", Role::Prefill)
        .value("Decode", Role::Decode);

    nb::class_<Shape>(m, "Shape")
        .def(
            "__init__",
            [](Shape* self, uint32_t layers, uint32_t hidden, uint32_t heads, uint32_t kv_heads,
               uint32_t head_size, uint32_t ffn, uint32_t vocabulary, uint32_t bytes) {
                new (self) Shape{layers, hidden, heads, kv_heads, head_size, ffn, vocabulary, bytes};
            },
            "layers"_a, "hidden"_a, "heads"_a, "kv_heads"_a, "head_size"_a, "ffn"_a, "vocabulary"_a,
            "bytes"_a = 2)
        .def("kv_bytes", &Shape::kv_bytes);

    nb::class_<StaticTimes>(m, "StaticTimes")
        .def(
            "__init__",
            [](StaticTimes* self, double mma_launch, double mma, double vector_launch, double vector) {
                new (self) StaticTimes{mma_launch, mma, vector_launch, vector};
            },
            "mma_launch"_a, "mma"_a, "vector_launch"_a, "vector"_a);

    nb::class_<EngineConfig>(m, "EngineConfig")
        .def(
            "__init__",
            [](EngineConfig* self, Role role, uint32_t slots, uint32_t token_budget, bool chunked,
               uint32_t blocks, uint32_t block_tokens, bool async_scheduling, double launch_us,
               double schedule_us, uint32_t cube_limit, uint32_t vector_limit, uint32_t priority) {
                new (self) EngineConfig{role,        slots,        token_budget,     chunked,
                                        blocks,      block_tokens, async_scheduling, launch_us,
                                        schedule_us, cube_limit,   vector_limit,     priority};
            },
            "role"_a, "slots"_a, "token_budget"_a, "chunked"_a, "blocks"_a, "block_tokens"_a = 128,
            "async_scheduling"_a = true, "launch_us"_a = 10.0, "schedule_us"_a = 500.0, "cube_limit"_a = 0,
            "vector_limit"_a = 0, "priority"_a = 0);

    nb::class_<StepRecord>(m, "StepRecord")
        .def_ro("engine", &StepRecord::engine)
        .def_ro("start_us", &StepRecord::start_us)
        .def_ro("end_us", &StepRecord::end_us)
        .def_ro("prefill_tokens", &StepRecord::prefill_tokens)
        .def_ro("decode_tokens", &StepRecord::decode_tokens)
        .def_ro("sequences", &StepRecord::sequences)
        .def_ro("operators", &StepRecord::operators);

    nb::class_<Request>(m, "Request")
        .def_ro("arrival_us", &Request::arrival_us)
        .def_ro("prompt", &Request::prompt)
        .def_ro("output", &Request::output)
        .def_prop_ro("state", [](const Request& self) { return name_of(self.state); })
        .def_ro("generated", &Request::generated)
        .def_ro("preempted", &Request::preempted)
        .def_ro("first_us", &Request::first_us)
        .def_ro("second_us", &Request::second_us)
        .def_ro("end_us", &Request::end_us);

    nb::class_<LaneCounts>(m, "LaneCounts")
        .def_ro("steps", &LaneCounts::steps)
        .def_ro("operators", &LaneCounts::operators)
        .def_ro("prefill_tokens", &LaneCounts::prefill_tokens)
        .def_ro("decode_tokens", &LaneCounts::decode_tokens)
        .def_ro("launched", &LaneCounts::launched)
        .def_ro("completed", &LaneCounts::completed)
        .def_ro("device_us", &LaneCounts::device_us)
        .def_ro("longest_us", &LaneCounts::longest_us)
        .def_ro("held_us", &LaneCounts::held_us);

    m.def(
        "step_us",
        [](bool serial, const std::tuple<uint32_t, uint32_t, double, double, double, double>& chip,
           const Shape& shape, const StaticTimes& times, uint32_t tokens, uint32_t sequences, double pairs,
           double context) {
            const auto& [cubes, vectors, cube_rate, vector_rate, hbm_rate, core_rate] = chip;
            device::Device device({serial ? device::Contention::Serial : device::Contention::Fluid, cubes,
                                   vectors, cube_rate, vector_rate, hbm_rate, core_rate});
            const uint32_t stream = *device.add_stream();
            const Step step(shape, times, {tokens, sequences, pairs, context});
            for (uint32_t i = 0; i < step.size(); ++i) {
                device.submit(0, stream, step.at(i).kernel);
            }
            while (device.next(device::kNever)) {
            }
            return device.now_us();
        },
        "serial"_a, "chip"_a, "shape"_a, "times"_a, "tokens"_a, "sequences"_a, "pairs"_a, "context"_a,
        "How long the device takes for a step alone, when no host is late.");

    nb::class_<Simulation>(m, "Simulation")
        .def(
            "__init__",
            [](Simulation* self, bool serial,
               const std::tuple<uint32_t, uint32_t, double, double, double, double>& chip, const Shape& shape,
               const StaticTimes& times, const std::vector<EngineConfig>& engines, double dispatch_us,
               double completion_us, double answer_us, double transfer_rate, double transfer_us,
               bool first_from_prefill) {
                const auto& [cubes, vectors, cube_rate, vector_rate, hbm_rate, core_rate] = chip;
                new (self) Simulation(
                    {serial ? device::Contention::Serial : device::Contention::Fluid, cubes, vectors,
                     cube_rate, vector_rate, hbm_rate, core_rate},
                    shape, times, engines,
                    {dispatch_us, completion_us, answer_us, transfer_rate, transfer_us, first_from_prefill});
            },
            "serial"_a, "chip"_a, "shape"_a, "times"_a, "engines"_a, "dispatch_us"_a = 2.0,
            "completion_us"_a = 40.0, "answer_us"_a = 25.0, "transfer_rate"_a = 392e3,
            "transfer_us"_a = 1000.0, "first_from_prefill"_a = true)
        .def("add", &Simulation::add, "at_us"_a, "prompt"_a, "output"_a)
        .def("run", &Simulation::run, "until_us"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("now_ns", &Simulation::now_ns)
        .def("now_us", &Simulation::now_us)
        .def("take_steps", &Simulation::take_steps)
        .def("requests", [](const Simulation& self) { return self.requests(); })
        .def("counts", [](const Simulation& self, uint32_t engine) { return self.counts(engine); })
        .def(
            "queues",
            [](const Simulation& self, uint32_t engine) {
                const Scheduler& scheduler = self.scheduler(engine);
                return std::tuple(scheduler.waiting(), scheduler.running(), scheduler.free_blocks());
            },
            "engine"_a, "(waiting requests, running requests, free blocks) of an engine.")
        .def(
            "parked",
            [](const Simulation& self) {
                return std::tuple(self.parked().token_us, self.parked().most, self.parked().now);
            },
            "Of caches that wait for their decode engine: (tokens times us, most tokens at once, tokens "
            "now).")
        .def("ended", &Simulation::ended)
        .def("operators", &Simulation::operators)
        .def(
            "use",
            [](const Simulation& self) {
                const device::Use& use = self.device().use();
                return std::tuple(use.busy_us, use.cube_core_us, use.vector_core_us, use.bytes);
            },
            "(time in which some core was held, cube cores times us, vector cores times us, bytes moved).")
        .def(
            "set_gate",
            [](Simulation& self, bool enabled, double window_us, double overlap_slowdown,
               uint64_t lease_until_ns, double decode_idle_us, double max_hold_us) {
                gate::Settings settings;
                settings.enabled = enabled;
                settings.window_us = window_us;
                settings.overlap_slowdown = overlap_slowdown;
                settings.lease_until_ns = lease_until_ns;
                settings.decode_idle_us = decode_idle_us;
                settings.max_hold_us = max_hold_us;
                self.gate().set_settings(self.now_ns(), settings);
            },
            "enabled"_a, "window_us"_a, "overlap_slowdown"_a, "lease_until_ns"_a, "decode_idle_us"_a,
            "max_hold_us"_a)
        .def(
            "set_phase",
            [](Simulation& self, uint32_t lane, const std::string& phase, double target_us) {
                const gate::Phase value = phase == "prefill"  ? gate::Phase::Prefill
                                          : phase == "decode" ? gate::Phase::Decode
                                                              : gate::Phase::Unknown;
                return self.gate().set_phase(lane, value, target_us);
            },
            "lane"_a, "phase"_a, "target_us"_a = 0.0)
        .def("phase",
             [](Simulation& self, uint32_t lane) {
                 const auto stats = self.gate().stats(lane);
                 return std::string(!stats || stats->phase == gate::Phase::Unknown ? "unknown"
                                    : stats->phase == gate::Phase::Prefill         ? "prefill"
                                                                                   : "decode");
             })
        .def(
            "lane",
            [](Simulation& self, uint32_t lane) {
                const auto stats = self.gate().stats(lane).value_or(gate::LaneStats{});
                nb::dict told;
                told["queued"] = stats.queued;
                told["in_flight"] = stats.in_flight;
                told["in_flight_us"] = stats.in_flight_us;
                told["launched"] = stats.dispatched;
                told["device_us"] = stats.device_us;
                told["gated_us"] = stats.gated_us;
                told["held_now"] = stats.held_now;
                told["prefill_steps"] = stats.prefill_steps;
                told["decode_steps"] = stats.decode_steps;
                told["prefill_tokens"] = stats.prefill_tokens;
                told["decode_tokens"] = stats.decode_tokens;
                return told;
            },
            "lane"_a, "What the gate knows of a lane, by the names of LaneStatus.")
        .def("decodes",
             [](Simulation& self, uint32_t lane) {
                 return self.gate().stats(lane).value_or(gate::LaneStats{}).decodes;
             })
        .def("gate_counters", [](Simulation& self) {
            const gate::Counters c = self.gate().counters();
            nb::dict told;
            told["decisions"] = c.decisions;
            told["held"] = c.held;
            told["forced"] = c.forced;
            told["inherited"] = c.inherited;
            told["oversize"] = c.oversize;
            told["expired_leases"] = c.expired_leases;
            told["lost_completions"] = c.lost_completions;
            told["unknown_completions"] = c.unknown_completions;
            told["cost_keys"] = c.cost_keys;
            return told;
        });
}
