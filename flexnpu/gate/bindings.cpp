// flexnpu.gate._gate: the gate for property tests and simulations in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "flexnpu/gate/gate.hpp"

namespace nb = nanobind;
using namespace flexnpu::gate;
using namespace nb::literals;

NB_MODULE(_gate, m) {
    m.doc() = "The dispatch gate: a pure state machine (flexnpu/gate/gate.hpp).";
    m.attr("NEVER") = kNever;

    nb::enum_<Phase>(m, "Phase")
        .value("Unknown", Phase::Unknown)
        .value("Prefill", Phase::Prefill)
        .value("Decode", Phase::Decode);

    nb::class_<Settings>(m, "Settings")
        .def(
            "__init__",
            [](Settings* self, bool enabled, double window_us, double overlap_slowdown,
               uint64_t lease_until_ns, double decode_idle_us, double max_hold_us, double default_stretch) {
                new (self) Settings{enabled,        window_us,   overlap_slowdown, lease_until_ns,
                                    decode_idle_us, max_hold_us, default_stretch};
            },
            "enabled"_a = false, "window_us"_a = 300.0, "overlap_slowdown"_a = 1.0, "lease_until_ns"_a = 0,
            "decode_idle_us"_a = 20000.0, "max_hold_us"_a = 10000.0, "default_stretch"_a = 1.5)
        .def_rw("enabled", &Settings::enabled)
        .def_rw("window_us", &Settings::window_us)
        .def_rw("lease_until_ns", &Settings::lease_until_ns)
        .def_rw("max_hold_us", &Settings::max_hold_us);

    nb::class_<Decision>(m, "Decision")
        .def_ro("lane", &Decision::lane)
        .def_ro("ticket", &Decision::ticket)
        .def_ro("est_us", &Decision::est_us)
        .def_ro("held_ns", &Decision::held_ns)
        .def_ro("mark", &Decision::mark)
        .def_ro("timed", &Decision::timed);

    nb::class_<LaneStats>(m, "LaneStats")
        .def_ro("phase", &LaneStats::phase)
        .def_ro("target_us", &LaneStats::target_us)
        .def_ro("decodes", &LaneStats::decodes)
        .def_ro("prefill_steps", &LaneStats::prefill_steps)
        .def_ro("decode_steps", &LaneStats::decode_steps)
        .def_ro("prefill_tokens", &LaneStats::prefill_tokens)
        .def_ro("decode_tokens", &LaneStats::decode_tokens)
        .def_ro("queued", &LaneStats::queued)
        .def_ro("in_flight", &LaneStats::in_flight)
        .def_ro("in_flight_us", &LaneStats::in_flight_us)
        .def_ro("enqueued", &LaneStats::enqueued)
        .def_ro("dispatched", &LaneStats::dispatched)
        .def_ro("device_us", &LaneStats::device_us)
        .def_ro("gated_us", &LaneStats::gated_us)
        .def_ro("held_now", &LaneStats::held_now)
        .def_ro("forced", &LaneStats::forced)
        .def_ro("inherited", &LaneStats::inherited)
        .def_ro("steps", &LaneStats::steps)
        .def_ro("step_ops", &LaneStats::step_ops)
        .def_ro("step_device_us", &LaneStats::step_device_us)
        .def_ro("step_solo_us", &LaneStats::step_solo_us);

    nb::class_<Counters>(m, "Counters")
        .def_ro("decisions", &Counters::decisions)
        .def_ro("held", &Counters::held)
        .def_ro("forced", &Counters::forced)
        .def_ro("inherited", &Counters::inherited)
        .def_ro("oversize", &Counters::oversize)
        .def_ro("expired_leases", &Counters::expired_leases)
        .def_ro("lost_completions", &Counters::lost_completions)
        .def_ro("unknown_completions", &Counters::unknown_completions)
        .def_ro("cost_keys", &Counters::cost_keys)
        .def_ro("cost_samples", &Counters::cost_samples)
        .def_ro("cost_evicted", &Counters::cost_evicted);

    nb::class_<Gate>(m, "Gate")
        .def(nb::init<>())
        .def_ro_static("LEND_WINDOWS", &Gate::kLendWindows)
        .def_ro_static("PIPELINE_US", &Gate::kPipelineUs)
        .def_ro_static("LAG_MOST_US", &Gate::kLagMostUs)
        .def_ro_static("LAG_SHARE", &Gate::kLagShare)
        .def_ro_static("HOLD_COSTS", &Gate::kHoldCosts)
        .def("add_lane", &Gate::add_lane, "lane"_a)
        .def("remove_lane", &Gate::remove_lane, "lane"_a)
        .def("set_phase", &Gate::set_phase, "lane"_a, "phase"_a, "target_us"_a = 0.0)
        .def("inherit", &Gate::inherit, "lane"_a, "ticket"_a)
        .def("protects", &Gate::protects, "lane"_a, "ticket"_a)
        .def("set_settings", &Gate::set_settings, "now_ns"_a, "settings"_a)
        .def("policy_active", &Gate::policy_active, "now_ns"_a)
        .def(
            "enqueue",
            [](Gate& self, uint64_t now_ns, uint32_t lane, uint64_t ticket, uint32_t op, uint64_t bucket,
               bool costed, bool step_end, bool step_begin, Phase phase, uint32_t tokens) {
                return self.enqueue(
                    now_ns, lane,
                    Item{OpKey{op, bucket}, ticket, costed, step_end, step_begin, phase, tokens});
            },
            "now_ns"_a, "lane"_a, "ticket"_a, "op"_a = 0, "bucket"_a = 0, "costed"_a = true,
            "step_end"_a = false, "step_begin"_a = false, "phase"_a = Phase::Unknown, "tokens"_a = 0)
        .def("next", &Gate::next, "now_ns"_a)
        .def("wake_at", &Gate::wake_at, "now_ns"_a)
        .def("completed", &Gate::completed, "now_ns"_a, "lane"_a, "ticket"_a, "measured_us"_a = -1.0)
        .def("step_end", &Gate::step_end, "now_ns"_a, "lane"_a)
        .def(
            "estimate",
            [](const Gate& self, uint32_t op, uint64_t bucket) { return self.estimate({op, bucket}); },
            "op"_a, "bucket"_a = 0)
        .def("stats", &Gate::stats, "lane"_a)
        .def("counters", &Gate::counters)
        .def("window_used_us", &Gate::window_used_us)
        .def("lag_us", &Gate::lag_us)
        .def("overlap_slowdown", &Gate::overlap_slowdown);

    m.def(
        "shape_bucket",
        [](const std::vector<std::vector<int64_t>>& tensors, size_t item_size) {
            ShapeBucket bucket;
            for (const auto& dims : tensors) {
                bucket.tensor(dims, item_size);
            }
            return bucket.value();
        },
        "tensors"_a, "item_size"_a = 4);
}
