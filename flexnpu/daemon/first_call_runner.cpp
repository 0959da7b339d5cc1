#include "flexnpu/daemon/first_call_runner.hpp"

#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void FirstCallRunner::begin(Session& s, const std::shared_ptr<Shape>& shape, std::vector<uint64_t> addresses,
                            Done done) {
    shape->first_call = Shape::FirstCall::under_way;
    made_++;
    workers_.threads().run(s.call_share, [this, s = s.shared_from_this(), shape,
                                          addresses = std::move(addresses), done = std::move(done)] {
        const uint64_t began = wire::now_ns();
        uint64_t workspace = 0;
        aclOpExecutor* executor = nullptr;
        Failure failure;
        failure.code = shape->first(addresses, &workspace, &executor);
        if (failure.code) failure.message = vendor_.message(shape->name(), failure.code);
        const uint64_t took = wire::now_ns() - began;
        drop_executor(executor);
        inbox_.post([this, s, shape, done, failure, workspace, took] {
            if (s->removed) return;
            // One that fails is tried again by who needs it next: it may be for its addresses.
            shape->first_call = failure.code ? Shape::FirstCall::none : Shape::FirstCall::over;
            if (failure.code == 0) s->first_calls.learn(shape->key(), took);
            auto waiting = std::exchange(shape->waiting, {});
            done(failure, workspace);
            for (const auto& [lane, ticket] : waiting) on_over(lane, ticket);
        });
    });
}

void FirstCallRunner::drop_executor(aclOpExecutor* executor) const {
    using Destroy = decltype(&::aclDestroyAclOpExecutor);
    static const auto destroy = reinterpret_cast<Destroy>(vendor_.symbol("aclDestroyAclOpExecutor"));
    if (executor && destroy) destroy(executor);
}

}  // namespace flexnpu::daemon
