#include <atomic>

#include "abi.hpp"

namespace flexnpu::host {
namespace {

// The stream that operations go to. Nothing is copied for them beforehand, whatever is asked about that.
class Streams final : public atb::Context {
public:
    atb::Status SetExecuteStream(aclrtStream stream) override {
        stream_ = stream;
        return atb::kOk;
    }
    aclrtStream GetExecuteStream() const override { return stream_; }
    atb::Status SetAsyncTilingCopyStatus(bool enable) override {
        asynchronous_ = enable;
        return atb::kOk;
    }
    bool GetAsyncTilingCopyStatus() const override { return asynchronous_; }

private:
    std::atomic<aclrtStream> stream_{nullptr};
    std::atomic<bool> asynchronous_{false};
};

}  // namespace
}  // namespace flexnpu::host

#pragma GCC visibility push(default)
namespace atb {

Context::~Context() = default;
Operation::~Operation() = default;

Status CreateContext(Context** context) {
    if (context == nullptr) {
        return kInvalidParameter;
    }
    *context = new flexnpu::host::Streams;
    return kOk;
}

Status DestroyContext(Context* context) {
    delete context;
    return kOk;
}

}  // namespace atb
#pragma GCC visibility pop
