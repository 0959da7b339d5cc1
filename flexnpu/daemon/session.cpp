#include "flexnpu/daemon/session.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

void Reply::send(int32_t status, const char* message, const uint64_t* words, size_t n) const {
    if (request == 0) return;
    std::lock_guard lock(ring->answer);
    wire::RingHeader& slot = ring->consumer.header();
    n = std::min(n, wire::kReplyWords);
    slot.status = status;
    slot.words = uint32_t(n);
    if (n) std::memcpy(slot.data, words, n * sizeof(uint64_t));
    const size_t length = std::min(strlen(message), wire::kMessageBytes - 1);
    std::memcpy(slot.message, message, length);
    slot.message[length] = '\0';
    // seq_cst against the client's store to `waiting` before its last look at `reply`: one of us sees the
    // other.
    slot.reply.store(request, std::memory_order_seq_cst);
    if (slot.waiting.load(std::memory_order_seq_cst)) wire::futex_wake(slot.reply);
}

HostMemory::~HostMemory() {
    pin.reset();
    munmap(address, bytes);
}

Session::~Session() {
    staging_pin.reset();
    if (page) munmap(page, wire::kSessionBytes);
}

void Session::give_block(int32_t block, uint32_t ticket) {
    if (block < 0) return;
    auto& word = page->block_done[block];
    word.store(ticket, std::memory_order_seq_cst);
    if (page->block_waiters.load(std::memory_order_seq_cst)) wire::futex_wake(word);
}

}  // namespace flexnpu::daemon
