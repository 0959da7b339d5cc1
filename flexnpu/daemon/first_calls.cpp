// An operator's first call for a shape is made beside the dispatching thread: see first_calls.hpp. The lane
// that needs it waits, and nothing else.
#include "flexnpu/daemon/first_calls.hpp"

#include "flexnpu/daemon/dispatcher.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

// Whether the item, the first of its lane's backlog, can be dispatched as far as its shape is concerned.
bool Dispatcher::first_call_over(Lane& lane, Item& item) {
    const std::shared_ptr<Shape>& shape = item.shape;
    if (shape->first_call == Shape::FirstCall::over) return true;
    if (shape->first_call == Shape::FirstCall::none && lane.session->first_calls.quick(shape->key())) {
        shape->first_call = Shape::FirstCall::credited;
        return true;
    }
    if (shape->first_call == Shape::FirstCall::credited) return true;
    lane.first_call = item.ticket;
    shape->waiting.emplace_back(lane.id, item.ticket);
    if (shape->first_call == Shape::FirstCall::none) {
        begin_first_call(*lane.session, shape, item.addresses,
                         [this, shape, id = lane.id, ticket = item.ticket](const Failure& failure, uint64_t) {
                             if (failure.code) drop_first(id, ticket, failure);
                         });
    }
    return false;
}

// Makes the call on a thread of the pool; `done` comes on the dispatching thread, unless the session has
// ended.
void Dispatcher::begin_first_call(Session& s, const std::shared_ptr<Shape>& shape,
                                  std::vector<uint64_t> addresses,
                                  std::function<void(const Failure&, uint64_t workspace)> done) {
    shape->first_call = Shape::FirstCall::under_way;
    count_.first_calls++;
    threads_->run(s.call_share, [this, s = s.shared_from_this(), shape, addresses = std::move(addresses),
                                 done = std::move(done)] {
        const uint64_t began = wire::now_ns();
        uint64_t workspace = 0;
        aclOpExecutor* executor = nullptr;
        Failure failure;
        failure.code = shape->first(addresses, &workspace, &executor);
        if (failure.code) failure.message = vendor_.message(shape->name(), failure.code);
        const uint64_t took = wire::now_ns() - began;
        drop_executor(executor);
        post([this, s, shape, done, failure, workspace, took] {
            if (s->removed) return;
            // One that fails is tried again by who needs it next: it may be for its addresses.
            shape->first_call = failure.code ? Shape::FirstCall::none : Shape::FirstCall::over;
            if (failure.code == 0) s->first_calls.learn(shape->key(), took);
            auto waiting = std::exchange(shape->waiting, {});
            done(failure, workspace);
            for (const auto& [id, ticket] : waiting) {
                auto it = lanes_.find(id);
                if (it == lanes_.end() || it->second->first_call != ticket) continue;
                it->second->first_call = 0;
                flow(*it->second);
            }
        });
    });
}

void Dispatcher::drop_executor(aclOpExecutor* executor) const {
    using Destroy = decltype(&::aclDestroyAclOpExecutor);
    static const auto destroy = reinterpret_cast<Destroy>(vendor_.symbol("aclDestroyAclOpExecutor"));
    if (executor && destroy) destroy(executor);
}

// The first of the lane's backlog, if it is still this one, cannot be launched: the next synchronise, or the
// capture's end, reports why.
void Dispatcher::drop_first(uint32_t id, uint64_t ticket, const Failure& failure) {
    auto it = lanes_.find(id);
    if (it == lanes_.end()) return;
    Lane& lane = *it->second;
    if (lane.first_call != ticket || lane.backlog.empty() || lane.backlog.front()->ticket != ticket) return;
    const std::unique_ptr<Item> item = std::move(lane.backlog.front());
    lane.backlog.pop_front();
    lane.session->queued--;
    count_.vendor_errors++;
    count_operator(lane, *item);
    dispatching_ = item.get();
    fail(lane, failure.code, failure.message);
    dispatching_ = nullptr;
}

}  // namespace flexnpu::daemon
