// Errors of calls that ask for more of something than the device, or the daemon, has.
#pragma once

#include "flexnpu/api/acl_consts.h"

namespace flexnpu::acl {

enum ResourceError : int32_t {
    RT_RESOURCE_ALLOC_FAIL = 207005,
    RT_NO_EVENT_RESOURCE = 207007,
    RT_NO_MODEL_RESOURCE = 207010,
};

}  // namespace flexnpu::acl
