#include "flexnpu/daemon/synchronises.hpp"

#include <algorithm>
#include <bit>

#include "flexnpu/daemon/deadline.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

using wire::now_ns;

namespace {

// A sleep that lasted no longer too long than this was prompt.
constexpr uint64_t kPromptNs = 25'000;
// Nobody tells of the end before the first look, and it may come sooner than usual. A wait that usually lasts
// longer than this is a thread's: what a thread wakes late is little beside it.
constexpr uint64_t kLongestBlindNs = 5'000'000;
// How often a synchronise that has found no thread is looked at.
constexpr uint64_t kLookNs = 500'000;

}  // namespace

void Synchronises::add(std::shared_ptr<Session> session, std::vector<std::shared_ptr<Lane>> lanes,
                       int64_t deadline_ns, const Reply& reply) {
    const uint64_t began = now_ns();
    One one{.session = std::move(session),
            .lanes = std::move(lanes),
            .tickets = {},
            .failure = {},
            .deadline_ns = deadline_ns,
            .began = began,
            .poll = {began, began + wire::AdaptiveWait::kFirstSpinNs},
            .reply = reply,
            .graph = {},
            .bucket = 0};
    if (!one.lanes.empty()) {
        const Lane& lane = *one.lanes.front();
        one.graph = lane.replayed;
        one.bucket =
            std::min<size_t>(std::bit_width(lane.in_flight_since_sync), std::size(lane.sync_waits) - 1);
        one.poll = adaptive_wait_of(one.graph, one.lanes, one.bucket)->plan(began);
        if (one.poll.spin_from > began + kLongestBlindNs)
            one.poll = {began, began + wire::AdaptiveWait::kLeastSpinNs};
    }
    for (auto& lane : one.lanes) {
        if (one.failure.code == 0) one.failure = std::exchange(lane->failure, {});
        one.tickets.emplace_back(lane->id, lane->last_ticket);
    }
    if (!answer_if_complete(one)) all_.push_back(std::move(one));
}

bool Synchronises::answer_if_complete(One& one) {
    for (auto& lane : one.lanes) {
        int32_t status = acl::STREAM_NOT_READY;
        const int32_t e = vendor_.aclrtStreamQuery(lane->stream, &status);
        // A stream that cannot be asked about does not keep a synchronise without a thread waiting for ever.
        if (e ? !one.threadless : status != acl::STREAM_COMPLETE) return false;
    }
    wait_for(one);  // returns at once, with an operator's error if there was one
    if (one.failure.code == 0) {
        for (auto [lane, ticket] : one.tickets) lanes_.synced(lane, ticket);
    }
    answer(one);
    return true;
}

void Synchronises::wait_for(One& one) const {
    for (auto& lane : one.lanes) {
        const int32_t e = one.deadline_ns < 0 ? vendor_.aclrtSynchronizeStream(lane->stream)
                                              : vendor_.aclrtSynchronizeStreamWithTimeout(
                                                    lane->stream, left_ms(one.deadline_ns));
        if (e && one.failure.code == 0) one.failure = {e, vendor_.message("aclrtSynchronizeStream", e)};
    }
}

void Synchronises::answer(const One& one) {
    if (one.failure.code)
        one.reply.fail(one.failure);
    else
        one.reply.ok();
}

// A session that has ended takes its graphs down on another thread: the pointer keeps what it points into.
std::shared_ptr<wire::AdaptiveWait> Synchronises::adaptive_wait_of(
    const std::weak_ptr<Graph>& graph, const std::vector<std::shared_ptr<Lane>>& lanes, size_t bucket) {
    if (lanes.empty()) return nullptr;
    if (const auto g = graph.lock()) return {g, &g->sync_waits};
    return {lanes.front(), &lanes.front()->sync_waits[bucket]};
}

uint64_t Synchronises::next_poll() const {
    uint64_t first = UINT64_MAX;
    for (const One& one : all_) first = std::min(first, one.poll.spin_from);
    return first;
}

bool Synchronises::poll(uint64_t now) {
    bool busy = false;
    for (size_t i = 0; i < all_.size();) {
        One& one = all_[i];
        const bool look = now >= one.poll.spin_from;
        const bool done = one.session->removed || (look && answer_if_complete(one));
        const bool first = look && !std::exchange(one.looked, true);
        if (!done && now < one.poll.spin_until) {
            busy |= look;
            i++;
            continue;
        }
        const auto usual = adaptive_wait_of(one.graph, one.lanes, one.bucket);
        if (done) {
            // Over at the first look after a sleep: who knows since when.
            const bool slept = first && one.poll.spin_from > one.began;
            if (usual && !slept)
                usual->learn(now - one.began);
            else if (usual)
                usual->missed(now < one.poll.spin_from + kPromptNs);
        } else if (one.deadline_ns >= 0 && now >= uint64_t(one.deadline_ns)) {
            wait_for(one);  // for a millisecond, with the vendor's own error
            answer(one);
        } else if (!hand_over(one)) {
            // The look is repeated now and then.
            one.threadless = true;
            one.poll = {now + kLookNs, now + kLookNs};
            i++;
            continue;
        }
        all_.erase(all_.begin() + ptrdiff_t(i));
    }
    return busy;
}

// The worker keeps the session: its lanes must not be torn down under the wait. The session's teardown ends
// the worker first.
bool Synchronises::hand_over(One& one) {
    Worker& worker = workers_.of(*one.reply.ring);
    auto waiting = std::make_shared<One>(std::move(one));
    const bool taken = worker.try_post([this, waiting] {
        One& w = *waiting;
        wait_for(w);
        // Told before the answer, so that it is known before the client's next record; woken for it after.
        const bool failed = w.failure.code != 0;
        if (!failed) {
            inbox_.put([this, tickets = w.tickets, lanes = w.lanes, graph = w.graph, bucket = w.bucket,
                        took = now_ns() - w.began] {
                if (const auto usual = adaptive_wait_of(graph, lanes, bucket)) usual->learn(took);
                for (auto [lane, ticket] : tickets) lanes_.synced(lane, ticket);
            });
        }
        answer(w);
        if (!failed) inbox_.wake();
    });
    if (!taken) one = std::move(*waiting);
    return taken;
}

}  // namespace flexnpu::daemon
