#include "flexnpu/daemon/records/forwarded.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/api/forward.hpp"

namespace flexnpu::daemon {

struct ForwardedRecords::Context final : api::ForwardContext {
    Context(ForwardedRecords& f, Session& s) : family(f), session(s) {}
    bool stream(uint64_t handle, void** out) override {
        Lane* lane = family.lane_of(session, handle);
        if (!lane) return false;
        *out = lane->stream;
        return true;
    }
    void* vendor(api::FnId fn) override { return family.vendor_.function(fn); }
    ForwardedRecords& family;
    Session& session;
};

void ForwardedRecords::forward(Session& s, Payload p, const Reply& reply) {
    wire::Forward f;
    Payload rest;
    if (!take(p, &f, &rest) || f.function >= api::FN_COUNT || f.words > rest.size() / 8 ||
        rest.size() != size_t(f.words) * 8 || f.out_words > wire::kReplyWords) {
        return malformed(s, reply, "call");
    }
    uint64_t in[64] = {}, out[wire::kReplyWords] = {};
    if (f.words > std::size(in)) return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: too many arguments");
    if (f.words) std::memcpy(in, rest.data(), rest.size());
    // The program counts its devices in its own way.
    if (const int at = api::device_argument(uint16_t(f.function)); at >= 0 && uint32_t(at) < f.words) {
        if (int32_t(in[at]) != s.device)
            return refuse(s, reply, acl::RT_INVALID_DEVICE,
                          "device " + std::to_string(int32_t(in[at])) + " does not exist");
        in[at] = uint64_t(device_);
    }
    if (f.function == api::FN_aclrtSetStreamFailureMode && f.words >= 2) {
        if (Lane* lane = lane_of(s, in[0])) lane->stop_on_failure = in[1] == 1;
    }
    Context context(*this, s);
    uint32_t written = 0;
    const int32_t e =
        api::handle_forward(uint16_t(f.function), in, f.words, out, f.out_words, &written, context);
    if (e == 0) {
        // Programs size what they take by the device's memory: theirs ends at the quota.
        const bool memory = f.function == api::FN_aclrtGetDeviceInfo && f.words > 1 &&
                            int32_t(in[1]) == acl::ATTR_TOTAL_GLOBAL_MEM_SIZE;
        if (const uint64_t quota = s.account->quota(); memory && quota && written > 0)
            out[0] = std::min(out[0], quota);
        // The same of streams and events: what is left is what the session may still have.
        if (f.function == api::FN_aclrtGetStreamAvailableNum && written > 0)
            out[0] = std::min(out[0], s.holder->left(HeldKind::streams));
        if (f.function == api::FN_aclrtGetEventAvailNum && written > 0)
            out[0] = std::min(out[0], s.holder->left(HeldKind::events));
        return reply.send(0, "", out, written);
    }
    const char* text = vendor_.aclGetRecentErrMsg();
    reply.fail({e, text && *text
                       ? text
                       : std::string(api::kFnNames[f.function]) + " failed with error " + std::to_string(e)});
}

void ForwardedRecords::text(Session& s, Payload p, const Reply& reply) {
    wire::Text t;
    Payload rest;
    if (!take(p, &t, &rest) || rest.size() != wire::round8(t.bytes)) {
        return malformed(s, reply, "question");
    }
    std::string name(reinterpret_cast<const char*>(rest.data()), t.bytes);
    uint64_t words[wire::kReplyWords] = {};
    char* out = reinterpret_cast<char*>(words + 1);
    constexpr size_t room = (wire::kReplyWords - 1) * 8 - 1;
    int32_t e = 0;
    switch (t.what) {
        case wire::kVersionOf: e = vendor_.aclsysGetVersionStr(name.data(), out); break;
        case wire::kVersionNumberOf: {
            int32_t number = 0;
            e = vendor_.aclsysGetVersionNum(name.data(), &number);
            std::memcpy(out, &number, sizeof(number));
            if (e == 0) {
                words[0] = sizeof(number);
                return reply.send(0, "", words, 2);
            }
            break;
        }
        case wire::kCompileOption: {
            const size_t n = vendor_.aclGetCompileoptSize(t.number);
            if (n > 0 && n < room) e = vendor_.aclGetCompileopt(t.number, out, n);
            break;
        }
        default: return malformed(s, reply, "question");
    }
    if (e) return reply.fail({e, vendor_.message("the vendor's library", e)});
    words[0] = strnlen(out, room);
    reply.send(0, "", words, 1 + wire::round8(words[0]) / 8);
}

}  // namespace flexnpu::daemon
