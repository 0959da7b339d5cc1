// Shapes of outputs that only the operator's run tells.
#include <algorithm>

#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/meta.hpp"

namespace flexnpu::client {

void Session::add_late(uint64_t number, uint64_t stream,
                       std::vector<std::shared_ptr<api::LateDims>> outputs) {
    std::lock_guard lock(late_mutex_);
    late_.push_back({number, stream, std::move(outputs)});
    any_late_.store(true, std::memory_order_relaxed);
}

void Session::settle(Channel& channel, uint64_t stream, bool all) {
    if (!any_late_.load(std::memory_order_relaxed)) return;
    std::vector<Late> mine;
    {
        std::lock_guard lock(late_mutex_);
        std::erase_if(late_, [&](Late& l) {
            const bool take = all || l.stream == stream;
            if (take) mine.push_back(std::move(l));
            return take;
        });
        any_late_.store(!late_.empty(), std::memory_order_relaxed);
    }
    for (const Late& l : mine) {
        // An output that its owner has destroyed meanwhile needs no shape.
        if (std::none_of(l.outputs.begin(), l.outputs.end(), [](const auto& o) { return o.use_count() > 1; }))
            continue;
        if (channel.call(wire::Kind::late_dims, wire::LateDims{l.number}) != 0) continue;
        const uint64_t* word = channel.words();
        for (const auto& o : l.outputs) {
            const uint64_t n = *word++;
            if (n > wire::kMaxDims || word + n > channel.words() + wire::kReplyWords) break;
            o->dims.assign(reinterpret_cast<const int64_t*>(word), n);
            o->known.store(true, std::memory_order_release);
            word += n;
        }
    }
}

}  // namespace flexnpu::client
