// The functions of libnnopbase that take an executor. Compiled into libnnopbase, not into libopapi.
#include "acl.gen.h"
#include "executor.hpp"
#include "flexnpu/emulator/kernel.hpp"
#include "registry.hpp"

using flexnpu::ops::kParamNull;

extern "C" {

aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor* executor) {
    if (executor == nullptr || executor->magic != kExecutorLive) {
        return flexnpu_emu_fail(kParamNull, "aclSetAclOpExecutorRepeatable: not a live executor");
    }
    executor->repeatable = true;
    return 0;
}

aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor* executor) {
    if (executor == nullptr || executor->magic != kExecutorLive) {
        return flexnpu_emu_fail(kParamNull, "aclDestroyAclOpExecutor: not a live executor");
    }
    executor->release(executor);
    return 0;
}
}
