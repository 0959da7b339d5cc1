// Graph capture: not modelled yet. A program that asks learns that nothing is being captured.
#include "acl.gen.h"
#include "flexnpu/emulator/runtime/errors.hpp"

namespace acl = flexnpu::acl;
using flexnpu::emulator::fail;

extern "C" {

aclError aclmdlRICaptureGetInfo(aclrtStream, aclmdlRICaptureStatus* status, aclmdlRI* model) {
    if (status == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureGetInfo: the output is null");
    }
    *status = acl::CAPTURE_NONE;
    if (model != nullptr) {
        *model = nullptr;
    }
    return acl::SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
    if (mode == nullptr) {
        return fail(acl::INVALID_PARAM, "aclmdlRICaptureThreadExchangeMode: the mode is null");
    }
    thread_local aclmdlRICaptureMode current = 0;
    aclmdlRICaptureMode before = current;
    current = *mode;
    *mode = before;
    return acl::SUCCESS;
}

aclError aclmdlInitDump() { return acl::SUCCESS; }
aclError aclmdlFinalizeDump() { return acl::SUCCESS; }
aclError aclmdlSetDump(const char*) { return acl::SUCCESS; }
}
