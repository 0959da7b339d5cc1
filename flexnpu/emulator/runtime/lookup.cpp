#include "flexnpu/emulator/runtime/lookup.hpp"

namespace flexnpu::emulator {

int32_t null_argument(const char* function) {
    return fail(acl::INVALID_PARAM, "%s: an output is null", function);
}

int32_t check_device(const char* function, int64_t index) {
    int32_t devices = Runtime::get().settings().devices;
    if (index < 0 || index >= devices) {
        return fail(acl::RT_INVALID_DEVICE, "%s: there is no device %lld: this machine has %d", function,
                    static_cast<long long>(index), devices);
    }
    return acl::SUCCESS;
}

int32_t find_stream(const char* function, aclrtStream handle, std::shared_ptr<Stream>* stream) {
    const int32_t device = Runtime::get().current_device();
    if (device < 0) {
        return check_context(function);
    }
    *stream = Runtime::get().stream(handle);
    if (!*stream) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, handle);
    }
    if ((*stream)->device != device) {
        return fail(acl::RT_STREAM_CONTEXT, "%s: stream %p is of device %d, this thread's device is %d",
                    function, handle, (*stream)->device, device);
    }
    return acl::SUCCESS;
}

}  // namespace flexnpu::emulator
