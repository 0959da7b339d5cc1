#include "flexnpu/client/session/channel.hpp"

#include <algorithm>

#include "acl.gen.h"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::client {

using wire::Kind;

int32_t Channel::gone() { return session_.gone(); }

int32_t Channel::late() {
    return fail(acl::RT_WAIT_TIMEOUT, "FlexNPU: not over in time: the daemon at %s is busy or stopped",
                session_.path().c_str());
}

uint8_t* Channel::open(size_t payload, uint64_t until_ns) {
    const size_t size = sizeof(wire::Record) + payload;
    uint8_t* p = producer_.reserve(size);
    if (__builtin_expect(p == nullptr, 0)) {
        session_.page().ring_full.fetch_add(1, std::memory_order_relaxed);
        const uint64_t start = wire::now_ns();
        uint64_t looked = start;
        while (!(p = producer_.reserve(size))) {
            session_.ring_bell(wire::kAwake);
            const uint64_t now = wire::now_ns();
            if (now > until_ns) return nullptr;
            if (now - looked > kSliceNs) {
                if (!session_.alive()) return nullptr;
                looked = now;
            }
            // A full ring holds milliseconds of work: no need to be quick.
            nap(nap_after(now - start));
        }
    }
    return p + sizeof(wire::Record);
}

void Channel::publish(size_t payload, Kind kind, uint32_t request, wire::StepWord step) {
    const uint64_t sequence = session_.page().sequence.fetch_add(1, std::memory_order_relaxed);
    producer_.publish(sizeof(wire::Record) + payload, kind, request, sequence, step);
}

void Channel::close(size_t payload, Kind kind, bool soon, wire::StepWord step) {
    publish(payload, kind, 0, step);
    session_.ring_bell(soon ? wire::kAwake : wire::kNapping);
}

int32_t Channel::call(Kind kind, const void* head, size_t head_bytes, const void* more, size_t more_bytes,
                      const void* rest, size_t rest_bytes) {
    const int32_t e = begin(kind, head, head_bytes, more, more_bytes, rest, rest_bytes);
    return e ? e : finish();
}

int32_t Channel::begin(Kind kind, const void* head, size_t head_bytes, const void* more, size_t more_bytes,
                       const void* rest, size_t rest_bytes) {
    const size_t payload = wire::round8(head_bytes + more_bytes + rest_bytes);
    if (sizeof(wire::Record) + payload > wire::kMaxRecord) {
        return fail(
            acl::INVALID_PARAM,
            "FlexNPU: a call with %zu bytes of arguments is larger than the %zu that fit in a message",
            payload, wire::kMaxRecord);
    }
    if (__builtin_expect(asking_ != 0, 0)) {
        const Wait w = wait(asking_, {0, 0}, 0);
        if (w != Wait::answered) return w == Wait::gone ? gone() : late();
        asking_ = 0;
    }
    uint8_t* p = open(payload, give_up_ns_);
    if (!p) return give_up_ns_ != UINT64_MAX && session_.alive() ? late() : gone();
    std::memcpy(p, head, head_bytes);
    if (more_bytes) std::memcpy(p + head_bytes, more, more_bytes);
    if (rest_bytes) std::memcpy(p + head_bytes + more_bytes, rest, rest_bytes);
    if (++request_ == 0) ++request_;
    asking_ = request_;
    wait_of_ = size_t(kind);
    if (kind == Kind::copy && static_cast<const wire::Copy*>(head)->bytes <= wire::kInlineBytes)
        wait_of_ = kSmallCopy;
    if (kind == Kind::sync_stream || kind == Kind::sync_device || kind == Kind::sync_event) {
        const uint64_t graph = session_.replayed.load(std::memory_order_relaxed);
        if (graph) {
            wait_of_ = kReplays + wire::handle_index(graph) % kReplayed;
            session_.replayed.store(0, std::memory_order_relaxed);
        }
    }
    publish(payload, kind, request_);
    session_.ring_bell(wire::kAwake);
    return 0;
}

Channel::Wait Channel::wait(uint32_t request, wire::AdaptiveWait::Plan plan, uint64_t start) {
    wire::RingHeader& slot = producer_.header();
    auto answered = [&] { return slot.reply.load(std::memory_order_acquire) == request; };
    // Sleeps until the answer or `until`.
    auto sleep = [&](uint64_t until) {
        Wait result = Wait::answered;
        slot.waiting.store(1, std::memory_order_seq_cst);
        for (uint64_t now = wire::now_ns(); now < until; now = wire::now_ns()) {
            const uint32_t seen = slot.reply.load(std::memory_order_seq_cst);
            if (seen == request) break;
            wire::futex_wait(slot.reply, seen, std::min(until - now, kSliceNs));
            if (answered()) break;
            now = wire::now_ns();
            if (now >= give_up_ns_) {
                result = Wait::late;
                break;
            }
            // The daemon may have answered and died since.
            if (now < until && !session_.alive() && !answered()) {
                result = Wait::gone;
                break;
            }
        }
        slot.waiting.store(0, std::memory_order_relaxed);
        return result;
    };
    if (plan.spin_from > start && !answered()) {
        if (const Wait w = sleep(plan.spin_from); w != Wait::answered) return w;
    }
    for (unsigned i = 0; !answered(); ++i) {
        wire::cpu_relax();
        if (i % 16 == 15 && wire::now_ns() > plan.spin_until) {
            const Wait w = sleep(give_up_ns_);
            return w == Wait::answered && !answered() ? Wait::late : w;
        }
    }
    return Wait::answered;
}

int32_t Channel::finish() {
    const uint64_t start = wire::now_ns();
    wire::AdaptiveWait& usual = waits_[wait_of_];
    const Wait w = wait(asking_, usual.plan(start), start);
    if (__builtin_expect(w != Wait::answered, 0)) return w == Wait::gone ? gone() : late();
    asking_ = 0;
    usual.learn(wire::now_ns() - start);
    wire::RingHeader& slot = producer_.header();
    if (slot.status != 0) {
        slot.message[wire::kMessageBytes - 1] = '\0';
        return fail_text(slot.status, slot.message);
    }
    return 0;
}

}  // namespace flexnpu::client
