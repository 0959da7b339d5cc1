// Errors, and the small questions that are answered here or by one round trip.
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <map>
#include <string>

#include "acl.gen.h"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/client/session/session.hpp"
#include "fn_ids.gen.h"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::Session;
using wire::Kind;

namespace flexnpu::client {

namespace {

struct Errors {
    int32_t last = 0;
    std::string message;
    std::string told;  // what aclGetRecentErrMsg handed out: valid until the thread's next call of it
};
thread_local Errors errors;

}  // namespace

int32_t fail_text(int32_t code, const char* message) {
    errors.last = code;
    errors.message = message;
    return code;
}

int32_t last_error() { return errors.last ? errors.last : int32_t(acl::RT_INTERNAL); }

std::string last_message() { return errors.message; }

int32_t fail(int32_t code, const char* format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return fail_text(code, text);
}

}  // namespace flexnpu::client

using namespace flexnpu::client;

extern "C" {

aclError fx_refuse(const char* function) {
    return fail(acl::API_NOT_SUPPORTED,
                "%s is not interposed by FlexNPU: run the program without `flexnpu run` to use it", function);
}

aclError fx_refuse_why(const char* function, const char* why) {
    return fail(acl::API_NOT_SUPPORTED, "%s is not interposed by FlexNPU: %s", function, why);
}

aclError fx_call(uint16_t fn, const uint64_t* in, uint32_t in_words, uint64_t* out, uint32_t out_words) {
    Channel* c = channel_for(fn, in, in_words);
    if (!c) return flexnpu::client::last_error();
    const wire::Forward head{fn, in_words, out_words, 0};
    const int32_t status = c->call(Kind::forward, &head, sizeof(head), in, in_words * sizeof(uint64_t));
    if (status == 0) std::memcpy(out, c->words(), out_words * sizeof(uint64_t));
    return status;
}

const char* aclGetRecentErrMsg() {
    errors.told.swap(errors.message);
    errors.message.clear();
    return errors.told.empty() ? nullptr : errors.told.c_str();
}
aclError aclrtGetLastError(aclrtLastErrLevel) {
    const int32_t last = errors.last;
    errors.last = 0;
    return last;
}
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return errors.last; }

const char* aclrtGetSocName() {
    Session* s = Session::any();
    return s ? s->soc() : nullptr;
}

aclError aclrtDeviceGetBareTgid(int32_t* pid) {
    if (!pid) return fail(acl::INVALID_PARAM, "aclrtDeviceGetBareTgid: pid is null");
    // In a container, not its own number: other programs know it by the daemon's.
    Session* s = Session::any();
    *pid = s ? s->page().process : getpid();
    return 0;
}

// Compile options steer the vendor's operator compiler for this process; they are kept here, with the
// daemon's as defaults.
namespace {
std::mutex options_mutex;
auto& options = *new std::map<aclCompileOpt, std::string>;
[[maybe_unused]] const bool options_held = (hold_over_fork(options_mutex), true);

std::string option(aclCompileOpt which) {
    {
        std::lock_guard lock(options_mutex);
        if (auto it = options.find(which); it != options.end()) return it->second;
    }
    std::string value;
    if (Channel* c = Session::any_channel()) {
        const wire::Text ask{wire::kCompileOption, which, 0, 0};
        if (c->call(Kind::text, ask) == 0) {
            const uint64_t n = c->words()[0];
            if (n < (wire::kReplyWords - 1) * 8)
                value.assign(reinterpret_cast<const char*>(c->words() + 1), n);
        }
    }
    std::lock_guard lock(options_mutex);
    return options.emplace(which, std::move(value)).first->second;
}
}  // namespace

aclError aclSetCompileopt(aclCompileOpt which, const char* value) {
    if (!value) return fail(acl::INVALID_PARAM, "aclSetCompileopt: value is null");
    std::lock_guard lock(options_mutex);
    options[which] = value;
    return 0;
}
size_t aclGetCompileoptSize(aclCompileOpt which) { return option(which).size() + 1; }
aclError aclGetCompileopt(aclCompileOpt which, char* out, size_t length) {
    const std::string value = option(which);
    if (!out || length < value.size() + 1) {
        return fail(acl::INVALID_PARAM, "aclGetCompileopt: %zu bytes are needed, %zu given", value.size() + 1,
                    length);
    }
    std::memcpy(out, value.c_str(), value.size() + 1);
    return 0;
}

namespace {
// A version question: the answer's words behind the length.
aclError version(uint32_t what, const char* function, const char* package, void* out, size_t limit) {
    if (!package || !out) return fail(acl::INVALID_PARAM, "%s: null argument", function);
    Channel* c = Session::any_channel();
    if (!c) return flexnpu::client::last_error();
    const wire::Text ask{what, 0, uint32_t(strlen(package)), 0};
    if (int32_t e = c->call(Kind::text, &ask, sizeof(ask), package, ask.bytes)) return e;
    const uint64_t n = c->words()[0];
    std::memcpy(out, c->words() + 1, n < limit ? n : limit);
    return 0;
}
}  // namespace

aclError aclsysGetVersionStr(char* package, char* out) {
    char text[128] = {};  // ACL_PKG_VERSION_MAX_SIZE
    if (aclError e =
            version(wire::kVersionOf, "aclsysGetVersionStr", package, out ? text : nullptr, sizeof(text) - 1))
        return e;
    std::memcpy(out, text, strlen(text) + 1);
    return 0;
}
aclError aclsysGetVersionNum(char* package, int32_t* out) {
    return version(wire::kVersionNumberOf, "aclsysGetVersionNum", package, out, sizeof(int32_t));
}

// There is nothing to dump before aclmdlSetDump, which is refused by name.
aclError aclmdlInitDump() { return 0; }
aclError aclmdlFinalizeDump() { return 0; }

void aclAppLog(aclLogLevel level, const char* function, const char* file, uint32_t line, const char* format,
               ...) {
    static const int least = [] {
        const char* wanted = getenv("ASCEND_GLOBAL_LOG_LEVEL");
        return wanted && *wanted >= '0' && *wanted <= '9' && !wanted[1] ? *wanted - '0' : 3;
    }();
    if (!format || level < least) return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "%s:%u %s: %s\n", file ? file : "", line, function ? function : "", text);
}

}  // extern "C"
