// What compiled libraries of kernels call while they are loaded. Their kernels are known by a handle from
// then on; to launch one is refused by name (refusals.tsv), so a program loads such a library and does
// without its kernels.
#include <atomic>

#include "flexnpu/api/acl_consts.h"
#include "flexnpu/api/host_objects.hpp"

using namespace flexnpu::api;
namespace acl = flexnpu::acl;

namespace {

// Handles are never read: each is a number that no other has.
std::atomic<uint64_t> next_handle{0x464e4b31};

int32_t invalid(const char* function = __builtin_FUNCTION()) { return invalid_argument(function); }

int32_t give_handle(const void* binary, void** handle, const char* function) {
    if (binary == nullptr || handle == nullptr) {
        return invalid(function);
    }
    *handle = reinterpret_cast<void*>(next_handle++);
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

int32_t rtDevBinaryRegister(const void* binary, void** handle) {
    return give_handle(binary, handle, __func__);
}
int32_t rtRegisterAllKernel(const void* binary, void** handle) {
    return give_handle(binary, handle, __func__);
}
int32_t rtDevBinaryUnRegister(void* handle) { return handle ? int32_t(acl::SUCCESS) : invalid(); }
int32_t rtFunctionRegister(void* handle, const void* stub, const char* name, const void*, uint32_t) {
    return handle && stub && name ? int32_t(acl::SUCCESS) : invalid();
}
// The callback would free what a kernel keeps for a stream; no kernel keeps anything.
int32_t rtRegStreamStateCallback(const char* name, void*) { return name ? int32_t(acl::SUCCESS) : invalid(); }
}
