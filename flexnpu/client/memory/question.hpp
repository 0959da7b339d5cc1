// What the calls on memory between programs and on virtual memory have in common: a message with the number
// of a call, and an address perhaps.
#pragma once

#include <cstdint>

#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"

namespace flexnpu::client {

// Asks by `channel` (nullptr: the error is recorded already). The answer's words stay in the channel.
template <wire::Plain Message>
int32_t question(Channel* channel, wire::Kind kind, Message message, typename Message::Call call) {
    if (!channel) return last_error();
    message.call = call;
    if (message.address) message.address ^= channel->session().tag();
    return channel->call(kind, message);
}

}  // namespace flexnpu::client
