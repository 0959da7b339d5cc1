#include "simulation/core.hpp"

#include <algorithm>
#include <utility>

namespace flexnpu::simulation {

namespace {

constexpr uint8_t kMark = 1, kTimed = 2;

}  // namespace

Simulation::Simulation(const device::Chip& chip, const Shape& shape, const StaticTimes& times,
                       const std::vector<EngineConfig>& engines, const Options& options)
    : shape_(shape), times_(times), options_(options), device_(chip) {
    std::optional<uint32_t> entry;
    for (const EngineConfig& config : engines) {
        const auto number = static_cast<uint32_t>(engines_.size());
        if (config.slots == 0 || config.token_budget == 0 || config.blocks == 0 || config.block_tokens == 0) {
            throw std::invalid_argument("an engine needs slots, a token budget and blocks");
        }
        if (config.role == Role::Decode) {
            decode_ = number;
        } else if (!entry) {
            entry = number;
        }
        engines_.push_back({config, Scheduler(config, requests_), 0, {}, false, 0, {}});
        const auto stream = device_.add_stream(config.priority);
        if (!stream) {
            throw std::invalid_argument("a stream's priority is 0 to 7");
        }
        engines_.back().stream = *stream;
        device_.set_limit(*stream, config.cube_limit, config.vector_limit);
        gate_.add_lane(number);
    }
    if (!entry || (engines[*entry].role == Role::Prefill) != decode_.has_value()) {
        throw std::invalid_argument("one engine that does both, or one for prefill and one for decode");
    }
    entry_ = *entry;
}

uint32_t Simulation::add(double at_us, uint32_t prompt, uint32_t output) {
    if (prompt == 0 || output == 0 || !(at_us >= now_) ||
        (!requests_.empty() && at_us < requests_.back().arrival_us)) {
        throw std::invalid_argument("requests come in order of time, with one token in and out at least");
    }
    Request request;
    request.arrival_us = at_us;
    request.prompt = prompt;
    request.output = output;
    requests_.push_back(request);
    return static_cast<uint32_t>(requests_.size() - 1);
}

void Simulation::at(double when_us, Kind kind, uint32_t number, uint64_t ticket, double measured_us) {
    events_.push({when_us, serial_++, kind, number, ticket, measured_us});
}

bool Simulation::run(double until_us) {
    while (ended_ < requests_.size()) {
        const double arrival = arrived_ < requests_.size() ? requests_[arrived_].arrival_us : device::kNever;
        const double event = events_.empty() ? device::kNever : events_.top().at_us;
        const double kernel = device_.next_at();
        const double next = std::min({arrival, event, kernel});
        if (next > until_us) {
            now_ = until_us;
            return true;
        }
        if (next == device::kNever) {
            throw std::logic_error("requests are left, and nothing will happen");
        }
        now_ = std::max(now_, next);
        if (kernel <= next) {
            // The device may only have gone on inside, without an end.
            while (const auto end = device_.next(next)) {
                device_ended(*end);
            }
        } else if (event <= next) {
            const Event top = events_.top();
            events_.pop();
            handle(top);
        } else {
            arrive(arrived_++);
        }
    }
    return false;
}

void Simulation::handle(const Event& event) {
    switch (event.kind) {
        case Kind::Issue: issue(event.number); break;
        case Kind::Complete:
            gate_.completed(now_ns(), event.number, event.ticket, event.measured_us);
            pump();
            break;
        case Kind::Answer: answer(event.number); break;
        case Kind::Transferred: transferred(event.number); break;
        case Kind::Wake:
            if (now_ >= wake_us_) {
                wake_us_ = device::kNever;
                pump();
            }
            break;
    }
}

void Simulation::arrive(uint32_t number) {
    Request& request = requests_[number];
    const bool held = engines_[entry_].scheduler.fits(request) &&
                      (!decode_ || request.output == 1 || engines_[*decode_].scheduler.fits(request));
    if (!held) {
        request.state = State::Rejected;
        ++ended_;
        return;
    }
    request.state = State::Waiting;
    engines_[entry_].scheduler.add(number);
    begin(entry_);
}

// The host schedules the engine's next step, if it may and there is one.
void Simulation::begin(uint32_t number) {
    Engine& engine = engines_[number];
    if (engine.launching || engine.steps.size() > (engine.config.async ? 1 : 0)) {
        return;
    }
    pulls_.clear();
    Plan plan = engine.scheduler.schedule(pulls_);
    for (const uint32_t request : pulls_) {
        const double bytes = requests_[request].prompt * shape_.kv_bytes();
        at(now_ + options_.transfer_us + bytes / options_.transfer_rate, Kind::Transferred, request);
    }
    if (plan.parts.empty()) {
        return;
    }
    Step step(shape_, times_, plan.batch);
    const uint32_t size = step.size();
    engine.steps.push_back(
        {std::move(plan), std::move(step), engine.ticket, 0, 0, 0, std::vector<uint8_t>(size)});
    // The synchronise behind it has a ticket of its own.
    engine.ticket += size + 1;
    engine.launching = true;
    at(now_ + engine.config.schedule_us, Kind::Issue, number);
}

void Simulation::issue(uint32_t number) {
    Engine& engine = engines_[number];
    Flight& flight = engine.steps.back();
    gate::Item item;
    item.ticket = flight.first + flight.issued;
    item.key = flight.step.at(flight.issued).key;
    if (flight.issued == 0) {
        // As the client says it: a step with any prompt in it prefills.
        item.step_begin = true;
        item.phase = flight.plan.prefill_tokens > 0 ? gate::Phase::Prefill : gate::Phase::Decode;
        item.tokens = flight.plan.batch.tokens;
    }
    if (flight.issued == 0) {
        flight.start_us = now_;
    }
    gate_.enqueue(now_ns(), number, item);
    ++flight.issued;
    ++engine.counts.launched;
    const bool last = flight.issued == flight.step.size();
    if (!last) {
        at(now_ + engine.config.launch_us, Kind::Issue, number);
    } else if (!engine.config.async) {
        // An engine that runs ahead waits for an event of the step before instead, which is no synchronise.
        gate::Item end;
        end.ticket = item.ticket + 1;
        end.costed = false;
        end.step_end = true;
        gate_.enqueue(now_ns(), number, end);
    }
    pump();
    if (last) {
        engine.launching = false;
        begin(number);
    }
}

// The dispatcher takes all that the gate lets go now.
void Simulation::pump() {
    const uint64_t now = now_ns();
    while (const auto decision = gate_.next(now)) {
        Engine& engine = engines_[decision->lane];
        Flight* flight = &engine.steps.front();
        if (decision->ticket >= flight->first + flight->step.size() + 1) {
            flight = &engine.steps.back();
        }
        const uint64_t i = decision->ticket - flight->first;
        if (i >= flight->step.size()) {
            continue;  // the synchronise
        }
        engine.counts.held_us = std::max(engine.counts.held_us, double(decision->held_ns) / 1e3);
        flight->marks[i] = uint8_t((decision->mark ? kMark : 0) | (decision->timed ? kTimed : 0));
        dispatcher_free_us_ = std::max(dispatcher_free_us_, now_) + options_.dispatch_us;
        device::Kernel kernel = flight->step.at(static_cast<uint32_t>(i)).kernel;
        kernel.ticket = decision->ticket;
        if (!device_.submit(dispatcher_free_us_, engine.stream, kernel)) {
            throw std::logic_error("the chip refuses an operator of the model");
        }
    }
    const uint64_t wake = gate_.wake_at(now);
    if (wake != gate::kNever && double(wake) / 1e3 < wake_us_) {
        wake_us_ = double(wake) / 1e3;
        at(wake_us_, Kind::Wake, 0);
    }
}

void Simulation::device_ended(const device::Completion& end) {
    const uint32_t number = end.stream;  // streams were made in the engines' order
    Engine& engine = engines_[number];
    Flight& flight = engine.steps.front().first + engine.steps.front().step.size() > end.ticket
                         ? engine.steps.front()
                         : engine.steps.back();
    const uint64_t i = end.ticket - flight.first;
    ++engine.counts.completed;
    engine.counts.device_us += end.end_us - end.start_us;
    engine.counts.longest_us = std::max(engine.counts.longest_us, end.end_us - end.start_us);
    if (const uint8_t marks = flight.marks[i]; marks != 0) {
        // Two events around it see what else ran between what stands before it and its end.
        const double measured = (marks & kTimed) != 0 ? end.end_us - end.ready_us : -1;
        at(end.end_us + options_.completion_us, Kind::Complete, number, end.ticket, measured);
    }
    if (i + 1 == flight.step.size()) {
        flight.end_us = end.end_us;
        at(end.end_us + options_.answer_us, Kind::Answer, number);
    }
}

// The host has the results of the engine's oldest step.
void Simulation::answer(uint32_t number) {
    Engine& engine = engines_[number];
    const Flight flight = std::move(engine.steps.front());
    engine.steps.pop_front();
    if (!engine.config.async) {
        gate_.step_end(now_ns(), number);
    }
    const Plan& plan = flight.plan;
    ++engine.counts.steps;
    engine.counts.operators += flight.step.size();
    engine.counts.prefill_tokens += plan.prefill_tokens;
    engine.counts.decode_tokens += plan.decode_tokens;
    records_.push_back({number, flight.start_us, flight.end_us, plan.prefill_tokens, plan.decode_tokens,
                        static_cast<uint32_t>(plan.parts.size()), flight.step.size()});
    for (const Scheduled& part : plan.parts) {
        if (part.emits) {
            token(number, part.request);
        }
    }
    pump();
    begin(number);
}

// A token of a request's answer is there.
void Simulation::token(uint32_t number, uint32_t request_number) {
    Engine& engine = engines_[number];
    Request& request = requests_[request_number];
    --request.pending;
    const bool handed_on = engine.config.role == Role::Prefill && request.output > 1;
    if (!handed_on || options_.first_from_prefill) {
        ++request.generated;
        if (request.generated == 1) {
            request.first_us = now_;
        } else if (request.generated == 2) {
            request.second_us = now_;
        }
    }
    if (handed_on) {
        engine.scheduler.finish(request_number, true);
        park(request.prompt);
        request.state = State::Waiting;
        request.computed = 0;
        engines_[*decode_].scheduler.add(request_number);
        begin(*decode_);
    } else if (request.generated == request.output) {
        engine.scheduler.finish(request_number, false);
        request.state = State::Done;
        request.end_us = now_;
        ++ended_;
    }
}

void Simulation::transferred(uint32_t number) {
    Request& request = requests_[number];
    engines_[entry_].scheduler.release(std::exchange(request.parked_blocks, 0));
    park(-int64_t(request.prompt));
    request.state = State::Received;
    // Its last token is computed by the decode engine: the next one comes of it.
    request.computed = request.known() - 1;
    begin(entry_);
    begin(*decode_);
}

void Simulation::park(int64_t tokens) {
    parked_.token_us += double(parked_.now) * (now_ - parked_since_us_);
    parked_since_us_ = now_;
    parked_.now = uint64_t(int64_t(parked_.now) + tokens);
    parked_.most = std::max(parked_.most, parked_.now);
}

std::vector<StepRecord> Simulation::take_steps() { return std::exchange(records_, {}); }

}  // namespace flexnpu::simulation
