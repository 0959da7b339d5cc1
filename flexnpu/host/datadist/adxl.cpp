// libllm_datadist.so: adxl::AdxlEngine, by which Mooncake moves KV caches between engines of one host.
//
// Everything goes by AscendCL: memory is exported and imported, and copied by the engine that asks. So the
// same library works on the emulated device, interposed, and on a vendor's.
#include "engine.hpp"
#include "flexnpu/host/complaint.hpp"

namespace adxl {

using flexnpu::host::datadist::Engine;
using flexnpu::host::datadist::Failure;

namespace {

Status told(const char* function, const Failure& failure) {
    if (failure) {
        flexnpu_host_complain((std::string("libllm_datadist: ") + function + ": " + failure.text).c_str());
    }
    return failure.status;
}

Failure not_started() { return {kFailed, "the engine is not initialized"}; }

}  // namespace

class AdxlEngine::AdxlEngineImpl {
public:
    std::unique_ptr<Engine> engine;
};

AdxlEngine::AdxlEngine() : impl_(std::make_unique<AdxlEngineImpl>()) {}
AdxlEngine::~AdxlEngine() = default;

Status AdxlEngine::Initialize(const ge::AscendString& name,
                              const std::map<ge::AscendString, ge::AscendString>& options) {
    if (impl_->engine) return told("Initialize", {kFailed, "the engine is initialized already"});
    std::map<std::string, std::string> chosen;
    for (const auto& [key, value] : options) chosen[key.GetString()] = value.GetString();
    auto engine = std::make_unique<Engine>();
    if (Failure failure = engine->start(name.GetString(), chosen)) return told("Initialize", failure);
    impl_->engine = std::move(engine);
    return kSuccess;
}

void AdxlEngine::Finalize() { impl_->engine.reset(); }

Status AdxlEngine::RegisterMem(const MemDesc& memory, MemType type, void*& handle) {
    handle = nullptr;
    if (!impl_->engine) return told("RegisterMem", not_started());
    if (type != kDevice && type != kHost)
        return told("RegisterMem", {kInvalid, "memory type " + std::to_string(int(type))});
    std::string wrong;
    handle = impl_->engine->registry().add(memory.address, memory.bytes, type == kHost, &wrong);
    return handle ? kSuccess : told("RegisterMem", {kInvalid, wrong});
}

Status AdxlEngine::DeregisterMem(void* handle) {
    using Removed = flexnpu::host::datadist::Registry::Removed;
    if (!impl_->engine) return told("DeregisterMem", not_started());
    switch (impl_->engine->registry().remove(handle)) {
        case Removed::done: return kSuccess;
        case Removed::unknown: return told("DeregisterMem", {kInvalid, "no such handle"});
        case Removed::busy: break;
    }
    return told("DeregisterMem", {kTimeout, "other engines' transfers do not end"});
}

Status AdxlEngine::Connect(const ge::AscendString& engine, int32_t milliseconds) {
    return told("Connect",
                impl_->engine ? impl_->engine->connect(engine.GetString(), milliseconds) : not_started());
}

Status AdxlEngine::Disconnect(const ge::AscendString& engine, int32_t) {
    return told("Disconnect", impl_->engine ? impl_->engine->disconnect(engine.GetString()) : not_started());
}

Status AdxlEngine::TransferSync(const ge::AscendString& engine, TransferOp operation,
                                const std::vector<TransferOpDesc>& parts, int32_t milliseconds) {
    return told("TransferSync",
                impl_->engine ? impl_->engine->transfer(engine.GetString(), operation, parts, milliseconds)
                              : not_started());
}

Status AdxlEngine::TransferAsync(const ge::AscendString& engine, TransferOp operation,
                                 const std::vector<TransferOpDesc>& parts, const TransferArgs&,
                                 void*& request) {
    request = nullptr;
    return told("TransferAsync",
                impl_->engine ? impl_->engine->start_transfer(engine.GetString(), operation, parts, &request)
                              : not_started());
}

Status AdxlEngine::GetTransferStatus(void* const& request, TransferStatus& status) {
    status = TransferStatus::failed;
    return told("GetTransferStatus", impl_->engine ? impl_->engine->status(request, &status) : not_started());
}

Status AdxlEngine::GetCapability(FeatureType feature, int32_t& value) {
    value = feature == kAutoConnect || feature == kClientServer;
    return value ? kSuccess : kUnsupported;
}

Status AdxlEngine::MallocMem(MemType type, size_t bytes, void** p) {
    if (p == nullptr || bytes == 0) return told("MallocMem", {kInvalid, "the output is null, or size 0"});
    *p = nullptr;
    if (type != kHost) return told("MallocMem", {kUnsupported, "it makes memory of the host only"});
    if (int32_t e = aclrtMallocHost(p, bytes))
        return told("MallocMem", {kFailed, flexnpu::host::datadist::acl_error("aclrtMallocHost", e)});
    return kSuccess;
}

Status AdxlEngine::FreeMem(void* p) {
    if (int32_t e = aclrtFreeHost(p))
        return told("FreeMem", {kInvalid, flexnpu::host::datadist::acl_error("aclrtFreeHost", e)});
    return kSuccess;
}

Status AdxlEngine::ExportToShareableHandle(void*, aclrtMemFabricHandle&) {
    return told("ExportToShareableHandle", {kUnsupported, "FlexNPU does not share memory between hosts"});
}

}  // namespace adxl
