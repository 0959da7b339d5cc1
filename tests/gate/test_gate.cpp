// The gate under random events, for the sanitizers; its properties are checked in test_gate.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <random>

#include "flexnpu/gate/gate.hpp"

using namespace flexnpu::gate;

namespace {

uint64_t bucket(uint32_t quarter_octaves, uint64_t salt = 0) { return salt << 8 | quarter_octaves; }

}  // namespace

TEST_CASE("random events: order is kept and nothing is lost") {
    for (uint32_t seed = 0; seed < 40; ++seed) {
        std::mt19937 rng(seed);
        const auto upto = [&](uint32_t n) { return rng() % n; };
        Gate gate;
        std::map<uint32_t, std::deque<uint64_t>> queued, marked;
        uint64_t now = 1000, ticket = 0, dispatched = 0, removed = 0;
        const auto pump = [&] {
            while (const auto d = gate.next(now)) {
                REQUIRE(!queued[d->lane].empty());
                CHECK(queued[d->lane].front() == d->ticket);
                queued[d->lane].pop_front();
                ++dispatched;
                if (d->mark) {
                    marked[d->lane].push_back(d->ticket);
                }
            }
        };
        for (int i = 0; i < 20000; ++i) {
            const uint32_t lane = upto(6);
            switch (upto(12)) {
                case 0:
                    if (gate.add_lane(lane)) {
                        queued[lane].clear();
                    }
                    break;
                case 1:
                    if (upto(20) == 0 && gate.remove_lane(lane)) {
                        removed += queued[lane].size();
                        queued.erase(lane);
                        marked.erase(lane);
                    }
                    break;
                case 2: gate.set_phase(lane, static_cast<Phase>(upto(3)), upto(3) * 1000.0); break;
                case 3: {
                    Settings s;
                    s.enabled = upto(4) != 0;
                    s.window_us = upto(400);
                    s.overlap_slowdown = upto(3);
                    s.lease_until_ns = now + upto(50'000'000);
                    gate.set_settings(now, s);
                    break;
                }
                case 4: gate.step_end(now, lane); break;
                case 5: {
                    auto& marks = marked[lane];
                    if (!marks.empty()) {
                        const size_t k = upto(static_cast<uint32_t>(marks.size()));
                        gate.completed(now, lane, marks[k], upto(2) ? upto(500) : -1.0);
                        marks.erase(marks.begin(), marks.begin() + static_cast<long>(k) + 1);
                    }
                    break;
                }
                case 6: pump(); break;
                case 7: {
                    const uint64_t wake = gate.wake_at(now);
                    CHECK(wake > now);
                    now = wake == kNever ? now + 1000 : std::min(wake, now + 3'000'000'000);
                    break;
                }
                default:
                    now += upto(100'000);
                    if (gate.enqueue(now, lane,
                                     Item{{lane, bucket(upto(256), upto(50))},
                                          ticket,
                                          upto(4) != 0,
                                          upto(10) == 0,
                                          upto(8) == 0,
                                          upto(4) != 0 ? Phase::Unknown : static_cast<Phase>(upto(3))})) {
                        queued[lane].push_back(ticket);
                    }
                    ++ticket;
            }
        }
        Settings off;
        gate.set_settings(now, off);
        pump();
        for (const auto& [lane, queue] : queued) {
            CHECK(queue.empty());
        }
        CHECK(gate.counters().decisions == dispatched);
        CHECK(dispatched + removed <= ticket);
        CHECK(gate.window_used_us() >= 0);
    }
}

TEST_CASE("settings that are not numbers do no harm") {
    Gate gate;
    gate.add_lane(1);
    gate.add_lane(2);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    gate.set_phase(1, Phase::Prefill, nan);
    gate.set_phase(2, Phase::Decode, nan);
    Settings s;
    s.enabled = true;
    s.lease_until_ns = 1'000'000'000'000;
    s.window_us = s.decode_idle_us = s.max_hold_us = s.default_stretch = s.overlap_slowdown = nan;
    gate.set_settings(1, s);
    gate.enqueue(2, 2, Item{{1, 40}, 1});
    gate.enqueue(2, 1, Item{{1, 40}, 1});
    int n = 0;
    uint64_t now = 2;
    for (int i = 0; i < 1000 && n < 2; ++i) {
        while (gate.next(now)) {
            ++n;
        }
        const uint64_t wake = gate.wake_at(now);
        CHECK(wake > now);
        now = wake == kNever ? now + 1000 : wake;
    }
    CHECK(n == 2);
}

TEST_CASE("the cost table is bounded") {
    CostModel costs;
    for (uint64_t i = 0; i < 100'000; ++i) {
        const OpKey key{static_cast<uint32_t>(i % 900), bucket(static_cast<uint32_t>(i % 256), i)};
        costs.wants_sample(key);
        costs.learn(key, static_cast<double>(i % 300));
        CHECK(costs.estimate(key) >= 0);
    }
    CHECK(costs.size() <= 1 << 16);
    CHECK(costs.evicted() == 100'000 - costs.size());
}
