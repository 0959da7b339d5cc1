// The program's devices and contexts.
#pragma once

#include <cstdint>

namespace flexnpu::client {

class Channel;
class Session;

// The ring that a forwarded call goes by: of the device that an argument or a stream names, else any. nullptr
// with the error recorded.
Channel* channel_for(uint16_t function, const uint64_t* in, uint32_t words);

// Whether the session holds the stream (null: the default one); else the ACL error, recorded.
int32_t check_stream(const Session& session, const char* function, uint64_t stream);

// A stream made while a context of the program's own is current ends with it.
void add_to_context(uint64_t stream);

// In a child of fork(): none of its parent's contexts is one of its own.
void forget_contexts();

}  // namespace flexnpu::client
