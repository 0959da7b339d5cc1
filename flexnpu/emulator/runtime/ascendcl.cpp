// What the compatibility library libascendcl defines itself: names, capabilities, logging.
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "acl.gen.h"
#include "flexnpu/emulator/kernel.hpp"

namespace acl = flexnpu::acl;

extern "C" {

const char* flexnpu_emu_soc_name(void);  // libacl_rt

const char* aclrtGetSocName() { return flexnpu_emu_soc_name(); }

aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t* value) {
    switch (info) {
        case acl::INFO_AI_CORE_NUM: return aclrtGetDeviceInfo(device, acl::ATTR_AICORE_CORE_NUM, value);
        case acl::INFO_VECTOR_CORE_NUM: return aclrtGetDeviceInfo(device, acl::ATTR_VECTOR_CORE_NUM, value);
        case acl::INFO_L2_SIZE: return aclrtGetDeviceInfo(device, acl::ATTR_L2_CACHE_SIZE, value);
        default:
            return flexnpu_emu_fail(acl::INVALID_PARAM, "aclGetDeviceCapability: %d is not a capability",
                                    info);
    }
}

// Capabilities of the 910 family's later generations: infinities and bfloat16, and operators compiled ahead
// of time.
static const aclCannAttr kCannAttributes[] = {0, 1};

aclError aclGetCannAttribute(aclCannAttr attribute, int32_t* value) {
    if (value == nullptr) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclGetCannAttribute: the output is null");
    }
    *value = 0;
    for (aclCannAttr known : kCannAttributes) {
        if (attribute == known) {
            *value = 1;
        }
    }
    return acl::SUCCESS;
}

aclError aclGetCannAttributeList(const aclCannAttr** list, size_t* count) {
    if (list == nullptr || count == nullptr) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclGetCannAttributeList: an output is null");
    }
    *list = kCannAttributes;
    *count = std::size(kCannAttributes);
    return acl::SUCCESS;
}

// The program's own log lines: to stderr from ASCEND_GLOBAL_LOG_LEVEL (0 debug .. 3 error) on, when that is
// set.
void aclAppLog(aclLogLevel level, const char* function, const char* file, uint32_t line, const char* format,
               ...) {
    static const int least = [] {
        const char* wanted = std::getenv("ASCEND_GLOBAL_LOG_LEVEL");
        const bool digit = wanted != nullptr && *wanted >= '0' && *wanted <= '9' && wanted[1] == 0;
        return digit ? *wanted - '0' : INT_MAX;
    }();
    if (level < least || format == nullptr) {
        return;
    }
    char text[1024];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    std::fprintf(stderr, "[%d] %s:%u %s: %s\n", level, file != nullptr ? file : "", line,
                 function != nullptr ? function : "", text);
}
}
