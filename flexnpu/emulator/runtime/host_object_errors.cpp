// What the host objects' functions report when an argument is not what it should be. Part of every library
// that holds them.
#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/emulator/kernel.hpp"

namespace flexnpu::api {

int32_t invalid_argument(const char* function) {
    return flexnpu_emu_fail(acl::INVALID_PARAM, "%s: an argument is null, or not what it should be",
                            function);
}

}  // namespace flexnpu::api
