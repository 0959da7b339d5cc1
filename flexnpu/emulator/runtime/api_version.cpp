// Versions that the emulated package reports.
#include <cstdio>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/errors.hpp"

namespace acl = flexnpu::acl;
using flexnpu::emulator::fail;

namespace {

// The release whose API 1.17 is.
constexpr char kVersion[] = "8.5.0";
constexpr char kMajor[] = "8", kMinor[] = "5", kRelease[] = "0";
constexpr int32_t kVersionNumber = 80500000;

}  // namespace

extern "C" {

aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* version) {
    if (version == nullptr) {
        return fail(acl::INVALID_PARAM, "aclsysGetCANNVersion: the output is null");
    }
    std::memset(version, 0, sizeof(*version));
    std::snprintf(version->version, sizeof(version->version), "%s", kVersion);
    std::snprintf(version->major_version, sizeof(version->major_version), "%s", kMajor);
    std::snprintf(version->minor_version, sizeof(version->minor_version), "%s", kMinor);
    std::snprintf(version->release_version, sizeof(version->release_version), "%s", kRelease);
    return acl::SUCCESS;
}

aclError aclsysGetVersionStr(char* package, char* version) {
    if (package == nullptr || version == nullptr) {
        return fail(acl::INVALID_PARAM, "aclsysGetVersionStr: an argument is null");
    }
    std::memcpy(version, kVersion, sizeof(kVersion));
    return acl::SUCCESS;
}

aclError aclsysGetVersionNum(char* package, int32_t* number) {
    if (package == nullptr || number == nullptr) {
        return fail(acl::INVALID_PARAM, "aclsysGetVersionNum: an argument is null");
    }
    *number = kVersionNumber;
    return acl::SUCCESS;
}
}
