// vLLM's scheduler and the block manager on small cases that were worked out by hand.
#include <doctest/doctest.h>

#include <vector>

#include "simulation/engine.hpp"

using namespace flexnpu::simulation;

namespace {

struct Bench {
    std::vector<Request> requests;
    Scheduler scheduler;
    std::vector<uint32_t> pulls;

    Bench(const EngineConfig& config, std::vector<std::pair<uint32_t, uint32_t>> lengths)
        : scheduler(config, requests) {
        for (const auto& [prompt, output] : lengths) {
            Request request;
            request.prompt = prompt;
            request.output = output;
            request.state = State::Waiting;
            requests.push_back(request);
            scheduler.add(static_cast<uint32_t>(requests.size() - 1));
        }
    }

    // (request, tokens) of the next step.
    std::vector<std::pair<uint32_t, uint32_t>> next() {
        last = scheduler.schedule(pulls);
        std::vector<std::pair<uint32_t, uint32_t>> parts;
        for (const Scheduled& part : last.parts) {
            parts.emplace_back(part.request, part.tokens);
        }
        return parts;
    }

    // The step's tokens are there.
    void answer() {
        for (const Scheduled& part : last.parts) {
            if (!part.emits) {
                continue;
            }
            Request& request = requests[part.request];
            --request.pending;
            if (++request.generated == request.output) {
                scheduler.finish(part.request, false);
            }
        }
    }

    Plan last;
};

using Parts = std::vector<std::pair<uint32_t, uint32_t>>;

EngineConfig config(uint32_t slots, uint32_t budget, bool chunked, uint32_t blocks, uint32_t block_tokens) {
    EngineConfig c;
    c.slots = slots;
    c.token_budget = budget;
    c.chunked = chunked;
    c.blocks = blocks;
    c.block_tokens = block_tokens;
    return c;
}

}  // namespace

TEST_CASE("a chunked prompt shares the budget with decode, which comes first") {
    Bench bench(config(4, 8, true, 100, 4), {{3, 3}, {12, 2}});
    CHECK(bench.next() == Parts{{0, 3}, {1, 5}});
    CHECK(bench.last.prefill_tokens == 8);
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}, {1, 7}});
    CHECK(bench.last.decode_tokens == 1);
    // Of 5 tokens before and 7 more: 7 x 5 and 1 to 7; and the other's one against 4.
    CHECK(bench.last.batch.pairs == 4 + 35 + 28);
    CHECK(bench.last.batch.context == 4 + 12);
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}, {1, 1}});
    bench.answer();
    CHECK(bench.next().empty());
    CHECK(bench.scheduler.free_blocks() == 100);
}

TEST_CASE("without chunks a prompt that the budget does not hold waits, and those behind it too") {
    Bench bench(config(4, 8, false, 100, 4), {{5, 2}, {4, 1}, {1, 1}});
    CHECK(bench.next() == Parts{{0, 5}});
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}, {1, 4}, {2, 1}});
}

TEST_CASE("slots bound what runs") {
    Bench bench(config(1, 8, true, 100, 4), {{2, 2}, {2, 1}});
    CHECK(bench.next() == Parts{{0, 2}});
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}});
    bench.answer();
    CHECK(bench.next() == Parts{{1, 2}});
}

TEST_CASE("who was admitted last gives up its blocks, and computes again what it had") {
    // 4 blocks of 2 tokens. Both prompts take 2 blocks each; the first needs a third for its fifth token.
    Bench bench(config(4, 16, true, 4, 2), {{4, 4}, {3, 3}});
    CHECK(bench.next() == Parts{{0, 4}, {1, 3}});
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}});
    CHECK(bench.requests[1].preempted == 1);
    CHECK(bench.scheduler.free_blocks() == 1);
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}});  // 4 tokens of the other need 2 blocks
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}});
    bench.answer();
    CHECK(bench.next() == Parts{{1, 4}});
    bench.answer();
    CHECK(bench.next() == Parts{{1, 1}});
    bench.answer();
    CHECK(bench.next().empty());
    CHECK(bench.scheduler.free_blocks() == 4);
    CHECK_FALSE(bench.scheduler.fits({.prompt = 7, .output = 3}));
}

TEST_CASE("a step is scheduled while the one before runs, and none beyond the last token") {
    Bench bench(config(4, 8, true, 100, 4), {{2, 3}});
    CHECK(bench.next() == Parts{{0, 2}});
    const Plan first = bench.last;
    CHECK(bench.next() == Parts{{0, 1}});
    const Plan second = bench.last;
    bench.last = first;
    bench.answer();
    CHECK(bench.next() == Parts{{0, 1}});
    CHECK(bench.next().empty());
}

TEST_CASE("a request of another engine's cache takes its blocks, waits for them, and computes one token") {
    EngineConfig decode = config(1, 8, true, 3, 4);
    decode.role = Role::Decode;
    Bench bench(decode, {{8, 3}, {8, 3}});
    for (Request& request : bench.requests) {
        request.generated = 1;  // of the engine that computed the prompt
        request.parked_blocks = 2;
    }
    CHECK(bench.next().empty());
    CHECK(bench.pulls == std::vector<uint32_t>{0});  // 1 block is left
    CHECK(bench.requests[0].state == State::Receiving);
    bench.requests[0].state = State::Received;
    bench.requests[0].computed = 8;
    bench.requests[0].parked_blocks = 0;
    CHECK(bench.next() == Parts{{0, 1}});
    CHECK(bench.scheduler.free_blocks() == 0);
}
