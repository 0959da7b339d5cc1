// An engine's scheduler, as vLLM's (v1, vllm/v1/core/sched/scheduler.py, version 0.18): what its next step
// computes.
//
// Running requests come first, in the order in which they were admitted; each gets the tokens that it lacks,
// as far as the step's token budget goes. Where a request finds no block of the cache, the request that was
// admitted last gives up its own and waits again, at the front. If none had to, waiting requests are admitted
// first come, first served, while there are slots, budget and blocks. Without chunked prefill a prompt is
// admitted whole or not at all. A request of another engine's cache takes its blocks when it is at the front
// and a slot is free, waits for the transfer without a slot, and then computes its last token.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "simulation/model.hpp"

namespace flexnpu::simulation {

enum class Role : uint8_t { Both, Prefill, Decode };

struct EngineConfig {
    Role role = Role::Both;
    uint32_t slots = 256;          // --max-num-seqs
    uint32_t token_budget = 2048;  // --max-num-batched-tokens
    bool chunked = true;           // --enable-chunked-prefill
    uint32_t blocks = 1024, block_tokens = 128;
    bool async = true;         // --async-scheduling: the next step is scheduled and launched while one runs
    double launch_us = 10;     // the host's, an operator
    double schedule_us = 500;  // and a step, before its first operator
    uint32_t cube_limit = 0, vector_limit = 0, priority = 0;  // of its stream
};

enum class State : uint8_t { Coming, Waiting, Receiving, Received, Running, Parked, Done, Rejected };

struct Request {
    double arrival_us = 0;
    uint32_t prompt = 0, output = 0;

    State state = State::Coming;
    uint32_t computed = 0;       // tokens whose keys and values are, or will be, in the cache
    uint32_t generated = 0;      // tokens that its client has, or will have from the engine before
    uint32_t pending = 0;        // tokens of steps that have not ended
    uint32_t blocks = 0;         // held at the engine that has it
    uint32_t parked_blocks = 0;  // held at the engine that computed its prompt
    uint32_t preempted = 0;
    double first_us = -1, second_us = -1, end_us = -1;  // when its client had them

    uint32_t known() const { return prompt + generated + pending; }
};

struct Scheduled {
    uint32_t request = 0;
    uint32_t tokens = 0;
    bool emits = false;  // the step computes a token of the answer
};

struct Plan {
    std::vector<Scheduled> parts;
    Batch batch;
    uint32_t prefill_tokens = 0, decode_tokens = 0, prefill_sequences = 0;
};

class Scheduler {
public:
    Scheduler(const EngineConfig& config, std::vector<Request>& requests)
        : config_(config), requests_(requests), free_(config.blocks) {}

    // Whether the request's whole context can ever be held.
    bool fits(const Request& request) const;
    void add(uint32_t request) { waiting_.push_back(request); }
    // The next step; empty when there is nothing to compute. Requests that now hold blocks for their transfer
    // are added to `pulls`.
    Plan schedule(std::vector<uint32_t>& pulls);
    // A request has all its tokens: it leaves, with its blocks unless they are to stay (`park`).
    void finish(uint32_t request, bool park);
    void release(uint32_t blocks) { free_ += blocks; }

    uint32_t free_blocks() const { return free_; }
    size_t waiting() const { return waiting_.size(); }
    size_t running() const { return running_.size(); }

private:
    bool take(Request& request, uint32_t tokens);
    void preempt_last();
    uint32_t last_token(const Request& request) const;
    void put(Plan& plan, uint32_t number, uint32_t tokens);

    const EngineConfig config_;
    std::vector<Request>& requests_;
    std::deque<uint32_t> waiting_;
    std::vector<uint32_t> running_;
    uint32_t free_;
};

}  // namespace flexnpu::simulation
