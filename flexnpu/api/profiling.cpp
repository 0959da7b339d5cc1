// The profiling interface as a process without a device profiler answers it: a program's own records
// (torch.profiler's CPU side) work, and no record of the device is made. Device times of a process are the
// probes' to measure, which see every tenant.
#include <time.h>

#include <atomic>
#include <cstdio>
#include <string_view>
#include <vector>

#include "flexnpu/api/host_objects.hpp"

using namespace flexnpu::api;
namespace acl = flexnpu::acl;

struct aclprofConfig {
    Magic magic = Magic::ProfConfig;
    std::vector<uint32_t> devices;
    uint64_t what = 0;
};
struct aclprofStepInfo {
    Magic magic = Magic::ProfStep;
};

namespace {

aclError invalid(const char* function = __builtin_FUNCTION()) { return invalid_argument(function); }
bool valid(const aclprofConfig* c) { return c && c->magic == Magic::ProfConfig; }

}  // namespace

extern "C" {

aclError aclprofInit(const char* path, size_t n) { return path && n ? aclError(acl::SUCCESS) : invalid(); }
aclError aclprofFinalize() { return acl::SUCCESS; }
aclError aclprofSetConfig(aclprofConfigType, const char* value, size_t) {
    return value ? aclError(acl::SUCCESS) : invalid();
}
aclprofConfig* aclprofCreateConfig(uint32_t* devices, uint32_t n, aclprofAicoreMetrics,
                                   const aclprofAicoreEvents*, uint64_t what) {
    if (n && devices == nullptr) return invalid(), nullptr;
    auto* c = new aclprofConfig;
    c->devices.assign(devices, devices + n);
    c->what = what;
    return c;
}
aclError aclprofDestroyConfig(const aclprofConfig* c) {
    if (!valid(c)) return invalid();
    auto* o = const_cast<aclprofConfig*>(c);
    o->magic = Magic::Dead;
    delete o;
    return acl::SUCCESS;
}
aclError aclprofWarmup(const aclprofConfig* c) { return valid(c) ? aclError(acl::SUCCESS) : invalid(); }
aclError aclprofStart(const aclprofConfig* c) {
    if (!valid(c)) return invalid();
    static std::atomic<bool> told{false};
    if (!told.exchange(true))
        fprintf(stderr,
                "FlexNPU: aclprofStart: this process's profile holds no records of the device; use "
                "flexnpu-probe\n");
    return acl::SUCCESS;
}
aclError aclprofStop(const aclprofConfig* c) { return valid(c) ? aclError(acl::SUCCESS) : invalid(); }
aclprofStepInfo* aclprofCreateStepInfo() { return new aclprofStepInfo; }
void aclprofDestroyStepInfo(aclprofStepInfo* s) {
    if (s == nullptr || s->magic != Magic::ProfStep) {
        invalid();
        return;
    }
    s->magic = Magic::Dead;
    delete s;
}
// Marks of a profile that holds no device records: there is nothing to put them beside.
aclError aclprofGetStepTimestamp(aclprofStepInfo* s, aclprofStepTag, aclrtStream) {
    return s && s->magic == Magic::ProfStep ? aclError(acl::SUCCESS) : invalid();
}
aclError aclprofMarkEx(const char* text, size_t n, aclrtStream) {
    return text && n ? aclError(acl::SUCCESS) : invalid();
}

// What libraries of the vendor report to its profiler, which is not attached: taken and dropped, as CANN does
// then.
uint64_t MsprofGetHashId(const char* text, size_t n) {
    uint64_t value = 0xcbf29ce484222325;
    for (const char c : std::string_view(text ? text : "", text ? n : 0))
        value = (value ^ uint8_t(c)) * 0x100000001b3;
    return value;
}
uint64_t MsprofStr2Id(const char* text, size_t n) { return MsprofGetHashId(text, n); }
int32_t MsprofRegisterCallback(uint32_t, void* callback) {
    return callback ? int32_t(acl::SUCCESS) : invalid();
}
int32_t MsprofReportAdditionalInfo(uint32_t, const void* data, uint32_t) {
    return data ? int32_t(acl::SUCCESS) : invalid();
}
int32_t MsprofReportApi(uint32_t, const void* data) { return data ? int32_t(acl::SUCCESS) : invalid(); }
int32_t MsprofReportCompactInfo(uint32_t, const void* data, uint32_t) {
    return data ? int32_t(acl::SUCCESS) : invalid();
}
uint64_t MsprofSysCycleTime() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return uint64_t(now.tv_sec) * 1'000'000'000 + uint64_t(now.tv_nsec);
}
}
