// libplatform.so: what kernels of a program's own ask about the chip before they are launched. No such kernel
// is launched here (refusals.tsv), so every question fails by name. Weak, so that `flexnpu coverage` counts
// them refused.
//
// The vendor's functions take strings of libstdc++'s old ABI, which is part of their names.
#define _GLIBCXX_USE_CXX11_ABI 0
#include <cstdint>
#include <string>

#define REFUSED __attribute__((weak, visibility("default")))

namespace {

constexpr uint32_t kFailed = 0xffffffff;

void complain(const char* name);

}  // namespace

namespace fe {

enum class LocalMemType : int32_t;
class OptionalInfos;

class PlatFormInfos {
public:
    REFUSED uint32_t GetCoreNum() const;
    REFUSED void GetLocalMemSize(const LocalMemType& type, uint64_t& size);
    REFUSED void GetLocalMemBw(const LocalMemType& type, uint64_t& bandwidth);
    REFUSED void SetCoreNumByCoreType(const std::string& type);
    REFUSED bool GetPlatformResWithLock(const std::string& label, const std::string& key, std::string& value);
};

class PlatformInfoManager {
public:
    __attribute__((visibility("default"))) static PlatformInfoManager& GeInstance();
    REFUSED uint32_t GetPlatformInfos(std::string chip, PlatFormInfos& infos, OptionalInfos& more);
    REFUSED uint32_t InitRuntimePlatformInfos(const std::string& chip);
};

uint32_t PlatFormInfos::GetCoreNum() const {
    complain("fe::PlatFormInfos::GetCoreNum");
    return 0;
}
void PlatFormInfos::GetLocalMemSize(const LocalMemType&, uint64_t& size) {
    complain("fe::PlatFormInfos::GetLocalMemSize");
    size = 0;
}
void PlatFormInfos::GetLocalMemBw(const LocalMemType&, uint64_t& bandwidth) {
    complain("fe::PlatFormInfos::GetLocalMemBw");
    bandwidth = 0;
}
void PlatFormInfos::SetCoreNumByCoreType(const std::string&) {
    complain("fe::PlatFormInfos::SetCoreNumByCoreType");
}
bool PlatFormInfos::GetPlatformResWithLock(const std::string&, const std::string&, std::string&) {
    complain("fe::PlatFormInfos::GetPlatformResWithLock");
    return false;
}

PlatformInfoManager& PlatformInfoManager::GeInstance() {
    static PlatformInfoManager only;
    return only;
}
uint32_t PlatformInfoManager::GetPlatformInfos(std::string, PlatFormInfos&, OptionalInfos&) {
    complain("fe::PlatformInfoManager::GetPlatformInfos");
    return kFailed;
}
uint32_t PlatformInfoManager::InitRuntimePlatformInfos(const std::string&) {
    complain("fe::PlatformInfoManager::InitRuntimePlatformInfos");
    return kFailed;
}

}  // namespace fe

// Of the new ABI, like the rest of the room: only a pointer crosses.
extern "C" void flexnpu_host_complain(const char* text);

namespace {

void complain(const char* name) {
    flexnpu_host_complain(
        (std::string(name) + ": kernels of a program's own are not launched, so nothing is told of the chip")
            .c_str());
}

}  // namespace
