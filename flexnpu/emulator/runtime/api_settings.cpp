// Settings without effect on the model: kept, so that a program reads back what it set. Core limits: the
// model always uses all cores.
#include <algorithm>
#include <atomic>
#include <iterator>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::check_device;
using emu::fail;
using emu::null_argument;
using emu::Runtime;

namespace {

std::atomic<int32_t> g_saturation{1};  // INF_NAN mode
std::atomic<uint32_t> g_execute_timeout_s{0};
std::atomic<uint64_t> g_execute_timeout_us{0};
std::atomic<int64_t> g_system_options[64];

int32_t system_option(int32_t option, std::atomic<int64_t>** slot) {
    if (option < 0 || size_t(option) >= std::size(g_system_options)) {
        return fail(acl::RT_PARAM_INVALID, "%d is not a system option", option);
    }
    *slot = &g_system_options[option];
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) {
    g_saturation = mode;
    return acl::SUCCESS;
}
aclError aclrtGetDeviceSatMode(aclrtFloatOverflowMode* mode) {
    if (mode == nullptr) {
        return null_argument("aclrtGetDeviceSatMode");
    }
    *mode = g_saturation;
    return acl::SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
    std::atomic<int64_t>* slot = nullptr;
    if (int32_t error = system_option(option, &slot)) {
        return error;
    }
    *slot = value;
    return acl::SUCCESS;
}
aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
    std::atomic<int64_t>* slot = nullptr;
    if (value == nullptr) {
        return null_argument("aclrtGetSysParamOpt");
    }
    if (int32_t error = system_option(option, &slot)) {
        return error;
    }
    *value = *slot;
    return acl::SUCCESS;
}
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) {
    return aclrtSetSysParamOpt(option, value);
}
aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
    return aclrtGetSysParamOpt(option, value);
}

aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) {
    g_execute_timeout_s = seconds;
    g_execute_timeout_us = uint64_t(seconds) * 1'000'000;
    return acl::SUCCESS;
}
aclError aclrtSetOpExecuteTimeOutWithMs(uint32_t ms) {
    g_execute_timeout_s = ms / 1000;
    g_execute_timeout_us = uint64_t(ms) * 1000;
    return acl::SUCCESS;
}
aclError aclrtSetOpExecuteTimeOutV2(uint64_t us, uint64_t* actual_us) {
    g_execute_timeout_s = uint32_t(std::min<uint64_t>(us / 1'000'000, UINT32_MAX));
    g_execute_timeout_us = us;
    if (actual_us != nullptr) {
        *actual_us = us;
    }
    return acl::SUCCESS;
}
aclError aclrtGetOpExecuteTimeout(uint32_t* const ms) {
    if (ms == nullptr) {
        return null_argument("aclrtGetOpExecuteTimeout");
    }
    *ms = uint32_t(std::min<uint64_t>(g_execute_timeout_us / 1000, UINT32_MAX));
    return acl::SUCCESS;
}
aclError aclrtGetOpTimeOutInterval(uint64_t* us) {
    if (us == nullptr) {
        return null_argument("aclrtGetOpTimeOutInterval");
    }
    *us = 1000;
    return acl::SUCCESS;
}

// Core limits: the model always uses all cores.

aclError aclrtGetDeviceResLimit(int32_t device, aclrtDevResLimitType type, uint32_t* value) {
    if (value == nullptr) {
        return null_argument("aclrtGetDeviceResLimit");
    }
    if (int32_t error = check_device("aclrtGetDeviceResLimit", device)) {
        return error;
    }
    const emu::Profile& profile = Runtime::get().settings().profile;
    *value = uint32_t(type == 0 ? profile.cube_cores : profile.vector_cores);
    return acl::SUCCESS;
}
aclError aclrtSetDeviceResLimit(int32_t device, aclrtDevResLimitType, uint32_t) {
    return check_device("aclrtSetDeviceResLimit", device);
}
aclError aclrtResetDeviceResLimit(int32_t device) { return check_device("aclrtResetDeviceResLimit", device); }
aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t* value) {
    return aclrtGetDeviceResLimit(0, type, value);
}
}
