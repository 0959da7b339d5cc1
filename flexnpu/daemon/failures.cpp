#include "flexnpu/daemon/failures.hpp"

#include "flexnpu/daemon/graphs.hpp"

namespace flexnpu::daemon {

void Failures::refuse(Session& s, const Reply& reply, int32_t code, const std::string& message) {
    refused_++;
    s.refused++;
    reply.send(code, message.c_str(), nullptr, 0);
}

void Failures::refuse_later(Session& s, Lane* lane, int32_t code, std::string message) {
    refused_++;
    s.refused++;
    if (lane) fail(*lane, code, std::move(message));
}

void Failures::malformed(Session& s, const Reply& reply, const std::string& what) {
    malformed_++;
    refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: malformed " + what);
}

void Failures::malformed(Session& s) {
    malformed_++;
    refuse_later(s, nullptr, acl::INVALID_PARAM, "");
}

void Failures::fail(Lane& lane, int32_t code, std::string message) {
    Graph* capture = dispatching_ ? dispatching_->capturing.get() : lane.capture.get();
    Failure& first = capture && !capture->over ? capture->failure : lane.failure;
    if (first.code == 0) first = {code, std::move(message)};
}

void Failures::counters(std::map<std::string, uint64_t>* out) const {
    (*out)["refused"] = refused_;
    (*out)["malformed"] = malformed_;
    (*out)["vendor_errors"] = vendor_errors_;
    (*out)["timeouts"] = timeouts_;
    (*out)["quota_refusals"] = quota_refusals_;
}

}  // namespace flexnpu::daemon
