// What other threads are told of the data plane.
#include <algorithm>

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

std::shared_ptr<const Snapshot> Dispatcher::snapshot(std::chrono::milliseconds within) {
    return board_.latest(within, [this] { return inbox_.put_call([this] { publish(); }); });
}

void Dispatcher::publish() {
    board_.publish(now_ns(), [this](Snapshot& s) {
        s.sessions = sessions_.infos();
        s.lanes = lane_infos();
        s.counters = counters();
    });
}

std::vector<LaneInfo> Dispatcher::lane_infos() const {
    std::vector<LaneInfo> out;
    for (auto& s : sessions_.all()) {
        s->each_lane([&](const std::shared_ptr<Lane>& lane) {
            const auto g = gate_.stats(lane->id).value_or(gate::LaneStats{});
            out.push_back({lane->id, s->id, s->pid, s->comm, lane->handle, g.phase,
                           lane->backlog.size() + lane->queue.size(), g.in_flight, g.in_flight_us,
                           lane->launched,
                           std::max(lane->completed,
                                    lane->launched -
                                        std::min(lane->launched, g.in_flight + lane->in_flight_since_sync)),
                           g.device_us, g.gated_us, g.held_now, g.prefill_steps, g.decode_steps,
                           g.prefill_tokens, g.decode_tokens});
        });
    }
    return out;
}

std::map<std::string, uint64_t> Dispatcher::counters() const {
    const gate::Counters g = gate_.counters();
    std::map<std::string, uint64_t> out{
        {"records", records_seen_},
        {"naps", naps_},
        {"sleeps", sleeps_},
        {"gate_decisions", g.decisions},
        {"gate_held", g.held},
        {"gate_forced", g.forced},
        {"gate_inherited", g.inherited},
        {"gate_oversize", g.oversize},
        {"gate_expired_leases", g.expired_leases},
        {"gate_lost_completions", g.lost_completions},
        {"gate_unknown_completions", g.unknown_completions},
        {"gate_cost_keys", g.cost_keys},
        {"gate_cost_samples", g.cost_samples},
        {"gate_cost_evicted", g.cost_evicted},
        {"overlap_slowdown_milli", uint64_t(gate_.overlap_slowdown() * 1000)},
    };
    failures_.counters(&out);
    workers_.counters(&out);
    first_calls_.counters(&out);
    lanes_.counters(&out);
    host_calls_.counters(&out);
    copy_engine_.counters(&out);
    dispatch_.counters(&out);
    aborts_.counters(&out);
    sessions_.counters(&out);
    records_.counters(&out);
    return out;
}

}  // namespace flexnpu::daemon
