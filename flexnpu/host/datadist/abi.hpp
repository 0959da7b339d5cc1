// What programs link of libllm_datadist.so: transfers between the memory of engines. Names, layouts and
// numbers are the vendor's, as far as callers see them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/ascend_string.hpp"

#pragma GCC visibility push(default)
namespace adxl {

using Status = uint32_t;
inline constexpr Status kSuccess = 0;
inline constexpr Status kInvalid = 103900;
inline constexpr Status kTimeout = 103901;
inline constexpr Status kNotConnected = 103902;
inline constexpr Status kAlreadyConnected = 103903;
inline constexpr Status kUnsupported = 103905;
inline constexpr Status kExhausted = 203900;
inline constexpr Status kFailed = 503900;

enum MemType { kDevice, kHost };
enum TransferOp { kRead, kWrite };  // of the other engine's memory
enum FeatureType : int32_t { kAutoConnect, kClientServer };
enum class TransferStatus { waiting, completed, timeout, failed };

struct MemDesc {
    uintptr_t address;
    size_t bytes;
    uint8_t reserved[128];
};
struct TransferOpDesc {
    uintptr_t local;
    uintptr_t remote;
    size_t bytes;
};
struct TransferArgs {
    uint8_t reserved[128];
};

class AdxlEngine {
public:
    AdxlEngine();
    ~AdxlEngine();

    Status Initialize(const ge::AscendString& name,
                      const std::map<ge::AscendString, ge::AscendString>& options);
    void Finalize();
    Status RegisterMem(const MemDesc& memory, MemType type, void*& handle);
    Status DeregisterMem(void* handle);
    Status Connect(const ge::AscendString& engine, int32_t milliseconds);
    Status Disconnect(const ge::AscendString& engine, int32_t milliseconds);
    Status TransferSync(const ge::AscendString& engine, TransferOp operation,
                        const std::vector<TransferOpDesc>& parts, int32_t milliseconds);
    Status TransferAsync(const ge::AscendString& engine, TransferOp operation,
                         const std::vector<TransferOpDesc>& parts, const TransferArgs& more, void*& request);
    Status GetTransferStatus(void* const& request, TransferStatus& status);
    static Status GetCapability(FeatureType feature, int32_t& value);
    static Status MallocMem(MemType type, size_t bytes, void** p);
    static Status FreeMem(void* p);
    // Weak, so that `flexnpu coverage` counts it refused.
    __attribute__((weak)) static Status ExportToShareableHandle(void* p, aclrtMemFabricHandle& handle);

private:
    class AdxlEngineImpl;
    std::unique_ptr<AdxlEngineImpl> impl_;
};

}  // namespace adxl
#pragma GCC visibility pop
