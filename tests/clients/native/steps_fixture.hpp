// The step counter without a daemon: a clock that the test moves, and records that it looks at.
#pragma once

#include <doctest/doctest.h>

#include <string_view>
#include <thread>
#include <vector>

#include "flexnpu/client/steps/steps.hpp"
#include "flexnpu/wire/meta.hpp"

namespace flexnpu::test {

using client::StepLane;
using client::Steps;

inline constexpr uint64_t kStream = wire::make_handle(wire::HandleKind::stream, 3, 1);
inline constexpr uint64_t kOther = wire::make_handle(wire::HandleKind::stream, 4, 1);
inline constexpr uint64_t kGraph = wire::make_handle(wire::HandleKind::graph, 0, 1);

inline std::atomic<uint64_t> clock_ns, clock_reads;
inline std::vector<flexnpu_step_record> told;
inline volatile uint16_t listeners, beginners;

inline uint64_t read_clock() {
    clock_reads++;
    return clock_ns += 10;
}

struct StepsFixture {
    int begun = 0;                        // steps that an operator said it begins
    std::vector<client::StepPhase> said;  // phases that operators showed
    void take(const Steps::Launched& step) {
        begun += step.begins;
        if (step.phase.known()) said.push_back(step.phase);
    }
    std::atomic<uint64_t> launched{0};
    std::atomic<uint64_t> gated[8] = {};
    flexnpu_step_entry entries[3] = {};
    flexnpu_step_table table{kFlexnpuStepVersion, sizeof(flexnpu_step_entry), 3, 0, entries};
    Steps steps{{&listeners, read_clock, [] { return clock_ns += 10; },
                 [](const flexnpu_step_record* r) { told.push_back(*r); }, &beginners,
                 [](const flexnpu_step_record* r) { told.push_back(*r); }, &table, gated, 8, &launched}};
    StepsFixture() {
        listeners = 1;
        beginners = 1;
        clock_ns = 1000;
        told.clear();
        client::step_lane_used = nullptr;
    }

    static wire::MetaWriter embedding(std::vector<int64_t> indices, int64_t rows = 1000,
                                      int64_t columns = 64) {
        wire::MetaWriter w;
        const std::vector<int64_t> table{rows, columns};
        std::vector<int64_t> out = indices;
        out.push_back(columns);
        w.tensor('T', 1, 2, 0, table, {}, table);
        w.tensor('T', 9, 2, 0, indices, {}, indices);
        w.tensor('T', 1, 2, 0, out, {}, out);
        return w;
    }
    void embed(std::vector<int64_t> indices, uint64_t stream = kStream, int64_t rows = 1000,
               uint64_t t_first = 0) {
        StepLane& l = steps.lane(stream);
        take(steps.embedding(l, embedding(std::move(indices), rows).bytes(), t_first));
        steps.launched(l);
    }
    void launch(int n, uint64_t stream = kStream) {
        for (int i = 0; i < n; i++) steps.launched(steps.lane(stream));
    }
    void attend(std::vector<int64_t> query, std::vector<int64_t> lengths, std::vector<int64_t> kv,
                uint64_t stream = kStream) {
        wire::MetaWriter w;
        w.tensor('T', 1, 2, 0, query, {}, query);
        w.array('I', lengths.data(), uint32_t(lengths.size()), 8);
        w.array('I', kv.data(), uint32_t(kv.size()), 8);
        w.array('s', "TND", 3, 1);
        StepLane& l = steps.lane(stream);
        take(steps.attention(l, w.bytes(), client::StepRole::attention_query_kv));
        steps.launched(l);
    }
    void replay(uint64_t graph = kGraph, uint64_t stream = kStream) { take(steps.graph(stream, graph)); }
    // A synchronise, as the client makes one: what is over is noted before it waits.
    void sync(uint64_t stream = kStream) { steps.reached(steps.mark(stream)); }
    void sync_device() {
        for (const client::StepMark& m : steps.marks()) steps.reached(m);
    }
    void sync_event(uint64_t event) { steps.reached(steps.mark_of_event(event)); }
    static std::vector<flexnpu_step_record> of(uint32_t kind) {
        std::vector<flexnpu_step_record> out;
        for (const auto& r : told) {
            if (r.kind == kind) out.push_back(r);
        }
        return out;
    }
    static std::vector<flexnpu_step_record> done() { return of(FLEXNPU_STEP_DONE); }
};

}  // namespace flexnpu::test
