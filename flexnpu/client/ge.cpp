// The graph engine runs whole graphs on the device by itself, past AscendCL: it is not interposed.
#include "flexnpu/api/ge.hpp"

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/client/error.hpp"

int32_t flexnpu::api::engine_failure(const char* name) {
    return client::fail(acl::API_NOT_SUPPORTED,
                        "%s is not interposed by FlexNPU: the graph engine works on the device past AscendCL",
                        name);
}
