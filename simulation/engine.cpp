#include "simulation/engine.hpp"

#include <algorithm>

namespace flexnpu::simulation {

// The answer's tokens that this engine computes at most.
uint32_t Scheduler::last_token(const Request& request) const {
    return config_.role == Role::Prefill ? 1 : request.output;
}

bool Scheduler::fits(const Request& request) const {
    const uint64_t tokens = uint64_t(request.prompt) + last_token(request) - 1;
    return (tokens + config_.block_tokens - 1) / config_.block_tokens <= config_.blocks &&
           (config_.chunked || request.prompt <= config_.token_budget);
}

// Blocks for `tokens` more than are computed.
bool Scheduler::take(Request& request, uint32_t tokens) {
    const uint32_t needed = (request.computed + tokens + config_.block_tokens - 1) / config_.block_tokens;
    const uint32_t more = needed > request.blocks ? needed - request.blocks : 0;
    if (more > free_) {
        return false;
    }
    free_ -= more;
    request.blocks += more;
    return true;
}

void Scheduler::preempt_last() {
    const uint32_t number = running_.back();
    Request& request = requests_[number];
    running_.pop_back();
    free_ += request.blocks;
    request.blocks = 0;
    request.computed = 0;
    ++request.preempted;
    request.state = State::Waiting;
    waiting_.push_front(number);
}

void Scheduler::put(Plan& plan, uint32_t number, uint32_t tokens) {
    Request& request = requests_[number];
    const double before = request.computed;
    // A step of one token reads a cache; more tokens are (a part of) a prompt, or computed again.
    if (tokens > 1 || request.computed == 0) {
        plan.prefill_tokens += tokens;
        ++plan.prefill_sequences;
    } else {
        plan.decode_tokens += tokens;
    }
    plan.batch.tokens += tokens;
    ++plan.batch.sequences;
    plan.batch.pairs += tokens * before + tokens * (tokens + 1.0) / 2;
    plan.batch.context += before + tokens;
    request.computed += tokens;
    const bool emits = request.computed == request.known();
    if (emits) {
        ++request.pending;
    }
    plan.parts.push_back({number, tokens, emits});
}

Plan Scheduler::schedule(std::vector<uint32_t>& pulls) {
    Plan plan;
    uint32_t budget = config_.token_budget;
    bool preempted = false;
    for (size_t i = 0; i < running_.size() && budget > 0;) {
        const uint32_t number = running_[i];
        Request& request = requests_[number];
        if (request.generated + request.pending >= last_token(request)) {
            ++i;  // its last token is being computed
            continue;
        }
        const uint32_t tokens = std::min(request.known() - request.computed, budget);
        bool taken = take(request, tokens);
        while (!taken && running_.size() > i + 1) {
            preempt_last();
            preempted = true;
            taken = take(request, tokens);
        }
        if (!taken) {
            preempt_last();  // itself
            preempted = true;
            break;
        }
        put(plan, number, tokens);
        budget -= tokens;
        ++i;
    }
    for (size_t i = 0; !preempted && i < waiting_.size() && budget > 0 && running_.size() < config_.slots;) {
        const uint32_t number = waiting_[i];
        Request& request = requests_[number];
        if (request.state == State::Receiving) {
            ++i;
            continue;
        }
        if (request.parked_blocks > 0 && request.state == State::Waiting) {
            if (!take(request, request.prompt)) {
                break;
            }
            request.state = State::Receiving;
            pulls.push_back(number);
            ++i;
            continue;
        }
        uint32_t tokens = request.known() - request.computed;
        if (tokens > budget && !config_.chunked) {
            break;
        }
        tokens = std::min(tokens, budget);
        if (!take(request, tokens)) {
            if (running_.empty() && plan.parts.empty()) {
                ++i;  // those behind it may hold what it lacks
                continue;
            }
            break;
        }
        request.state = State::Running;
        running_.push_back(number);
        waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(i));
        put(plan, number, tokens);
        budget -= tokens;
    }
    return plan;
}

void Scheduler::finish(uint32_t number, bool park) {
    Request& request = requests_[number];
    std::erase(running_, number);
    std::erase(waiting_, number);  // it may have been preempted with its last token on the way
    if (park) {
        request.parked_blocks = request.blocks;
    } else {
        free_ += request.blocks;
    }
    request.blocks = 0;
}

}  // namespace flexnpu::simulation
