// Device code of a session's own: binaries, and the functions in them.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flexnpu/daemon/session.hpp"
#include "flexnpu/daemon/vendor.hpp"

namespace flexnpu::daemon {

// Unloaded with its last user: the session's table, an operator that has yet to be dispatched, a graph.
struct Binary : std::enable_shared_from_this<Binary> {
    Binary(Vendor& v, std::vector<uint8_t> b, std::shared_ptr<std::atomic<uint64_t>> a)
        : vendor(v), bytes(std::move(b)), account(std::move(a)) {}
    ~Binary();
    Binary(const Binary&) = delete;
    Binary& operator=(const Binary&) = delete;
    Vendor& vendor;
    Holding place;  // among its session's
    void* handle = nullptr;
    std::vector<uint8_t> bytes;                            // the vendor may read them until it is unloaded
    const std::shared_ptr<std::atomic<uint64_t>> account;  // of its session, which the bytes go back to
    std::map<std::string, uint64_t> functions;             // handles, by what they were asked for
};

struct Function {
    std::shared_ptr<Binary> binary;
    void* handle = nullptr;
    uint64_t serial = 0;  // of all functions of this daemon, for their costs
};

struct Kernels {
    Table<Binary> binaries{wire::HandleKind::binary};
    Table<Function> functions{wire::HandleKind::function};
    // Bytes of binaries, those on their way included.
    std::shared_ptr<std::atomic<uint64_t>> bytes = std::make_shared<std::atomic<uint64_t>>(0);
    std::map<const Ring*, std::vector<uint8_t>> arriving;
};

}  // namespace flexnpu::daemon
