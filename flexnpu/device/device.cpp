#include "flexnpu/device/device.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace flexnpu::device {

namespace {

constexpr uint32_t kVectorsOfMixed = 2;

template <typename T>
void push(std::vector<T>& heap, const T& value) {
    heap.push_back(value);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
}

template <typename T>
void pop(std::vector<T>& heap) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
}

bool is_amount(double v) { return v >= 0 && v < kNever; }

uint32_t cubes(Unit unit) { return unit == Unit::Vector ? 0 : 1; }
uint32_t vectors(Unit unit) { return unit == Unit::Cube ? 0 : unit == Unit::Vector ? 1 : kVectorsOfMixed; }
// In cube cores, by which bandwidth is shared: a vector core is half of one.
double weight(Unit unit) { return unit == Unit::Vector ? 0.5 : 1; }

}  // namespace

Device::Device(const Chip& chip)
    : chip_(chip), free_cube_(chip.cube_cores), free_vector_(chip.vector_cores) {}

std::optional<uint32_t> Device::add_stream(uint32_t priority) {
    if (priority >= kPriorities || (unused_.empty() && streams_.size() >= kMaxStreams)) {
        return std::nullopt;
    }
    uint32_t number = static_cast<uint32_t>(streams_.size());
    if (unused_.empty()) {
        streams_.emplace_back();
    } else {
        number = unused_.back();
        unused_.pop_back();
    }
    streams_[number] = Stream{};
    streams_[number].live = true;
    streams_[number].priority = priority;
    return number;
}

bool Device::remove_stream(uint32_t number) {
    if (number >= streams_.size() || !streams_[number].live || queued(number) > 0) {
        return false;
    }
    streams_[number].live = false;
    unused_.push_back(number);
    return true;
}

bool Device::set_limit(uint32_t number, uint32_t cube_cores, uint32_t vector_cores) {
    if (number >= streams_.size() || !streams_[number].live) {
        return false;
    }
    streams_[number].cube_limit = cube_cores;
    streams_[number].vector_limit = vector_cores;
    return true;
}

size_t Device::queued(uint32_t number) const {
    return number < streams_.size() ? streams_[number].queue.size() - streams_[number].front : 0;
}

uint32_t Device::cores_of(Unit unit) const {
    switch (unit) {
        case Unit::Cube: return chip_.cube_cores;
        case Unit::Vector: return chip_.vector_cores;
        default: return std::min(chip_.cube_cores, chip_.vector_cores / kVectorsOfMixed);
    }
}

uint32_t Device::fit(Unit unit) const {
    switch (unit) {
        case Unit::Cube: return free_cube_;
        case Unit::Vector: return free_vector_;
        default: return std::min(free_cube_, free_vector_ / kVectorsOfMixed);
    }
}

bool Device::submit(double at_us, uint32_t number, const Kernel& kernel) {
    if (number >= streams_.size() || !streams_[number].live || !is_amount(at_us) ||
        !is_amount(kernel.cube_ops) || !is_amount(kernel.vector_ops) || !is_amount(kernel.bytes) ||
        !is_amount(kernel.launch_us) || !is_amount(kernel.static_us) || kernel.blocks > kMaxBlocks) {
        return false;
    }
    const uint32_t cores = cores_of(kernel.unit);
    if (cores == 0 || (kernel.cube_ops > 0 && (kernel.unit == Unit::Vector || !(chip_.cube_rate > 0))) ||
        (kernel.vector_ops > 0 && (kernel.unit == Unit::Cube || !(chip_.vector_rate > 0))) ||
        (kernel.bytes > 0 && !(chip_.hbm_rate > 0 && chip_.core_rate > 0))) {
        return false;
    }
    Stream& stream = streams_[number];
    uint32_t blocks = kernel.blocks == 0 ? cores : kernel.blocks;
    if (kernel.limited) {
        if (kernel.unit != Unit::Vector && stream.cube_limit > 0) {
            blocks = std::min(blocks, stream.cube_limit);
        }
        if (kernel.unit != Unit::Cube && stream.vector_limit > 0) {
            blocks = std::min(blocks, std::max(1u, stream.vector_limit / vectors(kernel.unit)));
        }
    }
    if (kernel.launch == Launch::Batch && blocks > cores) {
        return false;
    }
    if (stream.front > 64 && stream.front * 2 > stream.queue.size()) {
        stream.queue.erase(stream.queue.begin(), stream.queue.begin() + static_cast<ptrdiff_t>(stream.front));
        stream.front = 0;
    }
    stream.queue.push_back({kernel, std::max(at_us, now_)});
    stream.queue.back().kernel.blocks = blocks;
    if (!stream.busy) {
        open(number);
        settle();
    }
    return true;
}

// The front of the stream's queue is next, and nothing stands before it.
void Device::open(uint32_t number) {
    Stream& stream = streams_[number];
    const Job& job = stream.queue[stream.front];
    stream.busy = true;
    stream.ready_us = std::max(job.at_us, now_);
    const bool serial = chip_.contention == Contention::Serial;
    const double at_us = stream.ready_us + (serial ? 0 : job.kernel.launch_us);
    if (at_us > now_) {
        push(launching_, {at_us, serial_++, number});
    } else {
        ready(number);
    }
}

void Device::ready(uint32_t number) {
    Stream& stream = streams_[number];
    const Kernel& kernel = stream.queue[stream.front].kernel;
    stream.unstarted = stream.unended = kernel.blocks;
    stream.order = uint64_t(stream.priority) << 56 | serial_++;
    const double blocks = kernel.blocks;
    stream.compute_us = 0;
    if (kernel.cube_ops > 0) {
        stream.compute_us = kernel.cube_ops / (blocks * chip_.cube_rate);
    }
    if (kernel.vector_ops > 0) {
        stream.compute_us = std::max(stream.compute_us,
                                     kernel.vector_ops / (blocks * chip_.vector_rate * vectors(kernel.unit)));
    }
    stream.bytes = kernel.bytes / blocks;
    const bool serial = chip_.contention == Contention::Serial;
    push(waiting_[serial ? 0 : size_t(kernel.unit)], {stream.order, number});
}

// Starts what fits of the stream's kernel; true when all its blocks have started.
bool Device::start(uint32_t number) {
    Stream& stream = streams_[number];
    const Kernel& kernel = stream.queue[stream.front].kernel;
    const uint32_t n = std::min(stream.unstarted, fit(kernel.unit));
    if (n == 0 || (kernel.launch == Launch::Batch && n < stream.unstarted)) {
        return false;
    }
    if (stream.unstarted == kernel.blocks) {
        stream.start_us = now_;
    }
    stream.unstarted -= n;
    free_cube_ -= n * cubes(kernel.unit);
    free_vector_ -= n * vectors(kernel.unit);
    Cohort cohort;
    cohort.stream = number;
    cohort.blocks = n;
    cohort.unit = kernel.unit;
    // What starts a kernel passes once: blocks that start later follow without.
    const double launch_us = chip_.contention == Contention::Serial ? kernel.launch_us : 0;
    const double static_us = now_ <= stream.start_us ? launch_us + kernel.static_us : 0;
    if (stream.bytes > 0) {
        const double rate = chip_.core_rate * weight(kernel.unit);
        cohort.demand = n * (stream.compute_us > 0 ? std::min(rate, stream.bytes / stream.compute_us) : rate);
    }
    cohort.since_us = now_;
    cohort.left = static_us;
    cohort.end_us = now_ + static_us;
    if (static_us <= 0) {
        work(cohort);
    }
    cohorts_.push_back(cohort);
    return stream.unstarted == 0;
}

// The cohort's static time has passed.
void Device::work(Cohort& cohort) {
    const Stream& stream = streams_[cohort.stream];
    cohort.working = true;
    cohort.since_us = now_;
    cohort.left = stream.bytes > 0 || stream.compute_us > 0 ? 1 : 0;
    cohort.rate = 0;
    cohort.end_us = cohort.left > 0 ? kNever : now_;
    if (stream.bytes > 0) {
        shares_stale_ = true;
    } else if (cohort.left > 0) {
        set_rate(cohort, 1 / stream.compute_us);
    }
}

void Device::set_rate(Cohort& cohort, double rate) {
    if (rate == cohort.rate) {
        return;
    }
    cohort.left = std::max(0.0, cohort.left - cohort.rate * (now_ - cohort.since_us));
    cohort.since_us = now_;
    cohort.rate = rate;
    cohort.end_us = now_ + cohort.left / rate;
}

// Gives free cores to the blocks that wait.
void Device::place() {
    if (chip_.contention == Contention::Serial) {
        std::vector<Waiting>& all = waiting_[0];
        if (!alone_ && !all.empty()) {
            alone_ = all.front().stream;
            pop(all);
        }
        if (alone_ && streams_[*alone_].unstarted > 0) {
            start(*alone_);
        }
        return;
    }
    std::array<bool, kUnits> closed{};
    while (true) {
        size_t unit = kUnits;
        for (size_t u = 0; u < kUnits; ++u) {
            if (!closed[u] && !waiting_[u].empty() &&
                (unit == kUnits || waiting_[unit].front() > waiting_[u].front())) {
                unit = u;
            }
        }
        if (unit == kUnits) {
            return;
        }
        const uint32_t number = waiting_[unit].front().stream;
        if (start(number)) {
            pop(waiting_[unit]);
            continue;
        }
        closed[unit] = true;
        const Stream& stream = streams_[number];
        if (stream.queue[stream.front].kernel.launch == Launch::Batch) {
            for (size_t u = 0; u < kUnits; ++u) {
                const bool shared = (cubes(Unit(u)) > 0 && cubes(Unit(unit)) > 0) ||
                                    (vectors(Unit(u)) > 0 && vectors(Unit(unit)) > 0);
                closed[u] = closed[u] || shared;
            }
        }
    }
}

double Device::weight_of(const Cohort& cohort) { return cohort.blocks * weight(cohort.unit); }

// Shares the memory's rate among the cohorts that work: max-min fair by core, none beyond its demand.
void Device::share() {
    shares_stale_ = false;
    double sum = 0;
    by_level_.clear();
    for (size_t i = 0; i < cohorts_.size(); ++i) {
        if (cohorts_[i].working && cohorts_[i].demand > 0) {
            sum += cohorts_[i].demand;
            by_level_.push_back(i);
        }
    }
    const bool enough = sum <= chip_.hbm_rate;
    double weights = 0;
    if (!enough) {
        const auto level = [this](size_t i) { return cohorts_[i].demand / weight_of(cohorts_[i]); };
        std::ranges::sort(by_level_, std::less<>(), level);
        for (const size_t i : by_level_) {
            weights += weight_of(cohorts_[i]);
        }
    }
    double left = chip_.hbm_rate;
    for (const size_t i : by_level_) {
        Cohort& cohort = cohorts_[i];
        cohort.share = cohort.demand;
        if (!enough) {
            cohort.share = std::min(cohort.demand, left * weight_of(cohort) / weights);
            left = std::max(0.0, left - cohort.share);
            weights -= weight_of(cohort);
        }
        set_rate(cohort, cohort.share / (cohort.blocks * streams_[cohort.stream].bytes));
    }
}

void Device::end(const Cohort& cohort) {
    Stream& stream = streams_[cohort.stream];
    free_cube_ += cohort.blocks * cubes(cohort.unit);
    free_vector_ += cohort.blocks * vectors(cohort.unit);
    shares_stale_ = shares_stale_ || cohort.demand > 0;
    stream.unended -= cohort.blocks;
    if (stream.unended > 0) {
        return;
    }
    const Kernel& kernel = stream.queue[stream.front].kernel;
    use_.bytes += kernel.bytes;
    use_.cube_ops += kernel.cube_ops;
    use_.vector_ops += kernel.vector_ops;
    ++use_.kernels;
    done_.push_back({cohort.stream, kernel.ticket, stream.ready_us, stream.start_us, now_});
    ++stream.front;
    stream.busy = false;
    alone_.reset();
    if (stream.front == stream.queue.size()) {
        stream.queue.clear();
        stream.front = 0;
    } else {
        open(cohort.stream);
    }
}

// The model's time goes on while nothing changes.
void Device::pass(double at_us) {
    const double dt = at_us - now_;
    if (dt <= 0) {
        return;
    }
    use_.busy_us += cohorts_.empty() ? 0 : dt;
    use_.cube_core_us += dt * (chip_.cube_cores - free_cube_);
    use_.vector_core_us += dt * (chip_.vector_cores - free_vector_);
    now_ = at_us;
}

// All that happens at the time `at_us`, which is the next at which something does.
void Device::step(double at_us) {
    pass(at_us);
    while (!launching_.empty() && launching_.front().at_us <= now_) {
        const uint32_t number = launching_.front().stream;
        pop(launching_);
        ready(number);
    }
    for (size_t i = 0; i < cohorts_.size();) {
        if (cohorts_[i].end_us > now_) {
            ++i;
        } else if (!cohorts_[i].working) {
            work(cohorts_[i]);
            ++i;
        } else {
            const Cohort ended = cohorts_[i];
            cohorts_[i] = cohorts_.back();
            cohorts_.pop_back();
            end(ended);
        }
    }
    settle();
}

void Device::settle() {
    place();
    if (shares_stale_) {
        share();
    }
    next_us_ = launching_.empty() ? kNever : launching_.front().at_us;
    for (const Cohort& cohort : cohorts_) {
        next_us_ = std::min(next_us_, cohort.end_us);
    }
}

std::optional<Completion> Device::next(double until_us) {
    while (done_at_ == done_.size()) {
        done_.clear();
        done_at_ = 0;
        if (next_us_ == kNever || !(next_us_ <= until_us)) {
            if (until_us < kNever) {
                pass(until_us);
            }
            return std::nullopt;
        }
        step(next_us_);
    }
    if (done_[done_at_].end_us > until_us) {
        return std::nullopt;
    }
    return done_[done_at_++];
}

std::vector<Running> Device::running() const {
    std::vector<Running> all;
    for (const Cohort& cohort : cohorts_) {
        const Stream& stream = streams_[cohort.stream];
        all.push_back({cohort.stream, stream.queue[stream.front].kernel.ticket,
                       cohort.blocks * cubes(cohort.unit), cohort.blocks * vectors(cohort.unit),
                       cohort.working ? cohort.demand : 0, cohort.working ? cohort.share : 0});
    }
    return all;
}

}  // namespace flexnpu::device
