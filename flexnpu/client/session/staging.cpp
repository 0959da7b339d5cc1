// The staging area: blocks of memory shared with the daemon that carry copies of pageable memory.
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::client {

bool Session::take_block(Block* out, bool later) {
    const uint64_t start = wire::now_ns();
    uint64_t looked = start;
    for (;;) {
        {
            std::lock_guard lock(block_mutex_);
            for (uint32_t b = 0; b < wire::kBlocks; b++) {
                if (block_use_[b] == Use::later &&
                    page_->block_done[b].load(std::memory_order_acquire) == block_ticket_[b]) {
                    block_use_[b] = Use::idle;
                }
                if (block_use_[b] != Use::idle) continue;
                block_use_[b] = later ? Use::later : Use::held;
                if (++block_ticket_[b] == 0) ++block_ticket_[b];
                const uint64_t offset = uint64_t(b) * wire::kBlockBytes;
                *out = {b, block_ticket_[b], staging_ + offset, offset};
                return true;
            }
        }
        const uint64_t now = wire::now_ns();
        if (now - looked > kSliceNs) {
            if (!alive()) {
                gone();
                return false;
            }
            looked = now;
        }
        page_->block_waiters.fetch_add(1);
        nap(nap_after(now - start));
        page_->block_waiters.fetch_sub(1);
    }
}

bool Session::wait_block(const Block& block) {
    auto& word = page_->block_done[block.index];
    // Tickets of a block grow: a later one says that it has come back since, and was lent anew.
    auto back = [&](uint32_t ticket) { return int32_t(ticket - block.ticket) >= 0; };
    const uint64_t spin_until = wire::now_ns() + kBlockSpinNs;
    while (!back(word.load(std::memory_order_acquire))) {
        wire::cpu_relax();
        if (wire::now_ns() < spin_until) continue;
        page_->block_waiters.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t seen = word.load(std::memory_order_seq_cst);
        if (!back(seen)) wire::futex_wait(word, seen, kSliceNs);
        page_->block_waiters.fetch_sub(1, std::memory_order_relaxed);
        if (!back(word.load(std::memory_order_acquire)) && !alive()) {
            gone();
            return false;
        }
    }
    return true;
}

void Session::give_block(const Block& block) {
    std::lock_guard lock(block_mutex_);
    block_use_[block.index] = Use::idle;
}

}  // namespace flexnpu::client
