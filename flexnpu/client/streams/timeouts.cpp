// Timeouts that a process sets for itself. The vendor keeps them for its whole process, which is the daemon:
// set there, they would be everybody's.
#include "flexnpu/client/streams/timeouts.hpp"

#include <algorithm>
#include <atomic>

#include "acl.gen.h"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/futex.hpp"
#include "fn_ids.gen.h"

namespace acl = flexnpu::acl;
using flexnpu::client::fail;

namespace flexnpu::client {

namespace {

constexpr uint64_t kUnset = UINT64_MAX;

std::atomic<uint32_t> wait_timeout_s{0};  // 0: none
// How long an operator may run: kept and told, but not enforced here. The device enforces the daemon's own.
std::atomic<uint64_t> execute_timeout_us{kUnset};

}  // namespace

int64_t deadline_ns(int32_t timeout_ms) {
    return timeout_ms < 0 ? -1 : int64_t(wire::now_ns()) + int64_t(timeout_ms) * 1'000'000;
}

int64_t wait_deadline_ns() {
    const uint32_t s = wait_timeout_s.load(std::memory_order_relaxed);
    return s == 0 ? -1 : int64_t(wire::now_ns()) + int64_t(s) * 1'000'000'000;
}

int32_t check_timeout(const char* function, int32_t timeout_ms) {
    if (timeout_ms > 0 || timeout_ms == -1) return 0;
    return fail(acl::RT_PARAM_INVALID, "%s: %d ms is not a timeout", function, timeout_ms);
}

}  // namespace flexnpu::client

using namespace flexnpu::client;

extern "C" {

aclError fx_call(uint16_t fn, const uint64_t* in, uint32_t in_words, uint64_t* out, uint32_t out_words);

aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
    wait_timeout_s = seconds;
    return 0;
}

aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) {
    execute_timeout_us = uint64_t(seconds) * 1'000'000;
    return 0;
}
aclError aclrtSetOpExecuteTimeOutWithMs(uint32_t ms) {
    execute_timeout_us = uint64_t(ms) * 1000;
    return 0;
}
aclError aclrtSetOpExecuteTimeOutV2(uint64_t us, uint64_t* actual_us) {
    execute_timeout_us = us;
    if (actual_us) *actual_us = us;
    return 0;
}
aclError aclrtGetOpExecuteTimeout(uint32_t* const ms) {
    if (!ms) return fail(acl::INVALID_PARAM, "aclrtGetOpExecuteTimeout: the output is null");
    const uint64_t us = execute_timeout_us;
    if (us != kUnset) {
        *ms = uint32_t(std::min<uint64_t>(us / 1000, UINT32_MAX));
        return 0;
    }
    const uint64_t wanted = 1;
    uint64_t out = 0;
    if (aclError e = fx_call(flexnpu::api::FN_aclrtGetOpExecuteTimeout, &wanted, 1, &out, 1)) return e;
    *ms = uint32_t(out);
    return 0;
}

}  // extern "C"
