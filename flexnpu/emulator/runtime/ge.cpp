// The emulated CANN has no graph engine.
#include "flexnpu/api/ge.hpp"

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/emulator/kernel.hpp"

int32_t flexnpu::api::engine_failure(const char* name) {
    return flexnpu_emu_fail(acl::API_NOT_SUPPORTED, "%s is not supported by the emulated CANN", name);
}
