// How the ranks of a new communicator find its memory: over a unix socket in the abstract namespace, which
// the kernel frees with its holder.
#pragma once

#include <cstdint>

namespace flexnpu::emulator::hccl {

// Names a rendezvous and opens it: whoever has it may join, if it is of the same user. The name alone, which
// others can see, does not.
struct Token {
    unsigned char bytes[32];
};

// Makes the memory of a communicator and serves it, from this process, to whoever comes with the token: until
// `ranks` have come (0: not known yet), or the connect timeout is over. One thread serves all that is open;
// there is a limit to that. Throws Refusal.
Token open_rendezvous(uint32_t ranks);

// A descriptor of the memory. Throws Refusal.
int join_rendezvous(const Token& token);

}  // namespace flexnpu::emulator::hccl
