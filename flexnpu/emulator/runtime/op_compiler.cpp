// libacl_op_compiler: compile options are kept; there is no compiler behind them. aclop.cpp runs operators by
// type.
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "acl.gen.h"
#include "flexnpu/emulator/kernel.hpp"

namespace acl = flexnpu::acl;

namespace {

std::mutex& options_mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
}

// What was set.
std::map<aclCompileOpt, std::string>& options() {
    static auto* values = new std::map<aclCompileOpt, std::string>;
    return *values;
}

// Whether operators are compiled when they are first met. "disable", as on the emulated generation of chips:
// otherwise torch_npu asks the compiler instead of calling aclnn operators.
constexpr aclCompileOpt kJitCompile = 10;

std::string option(aclCompileOpt which) {
    std::lock_guard lock(options_mutex());
    auto at = options().find(which);
    return at != options().end() ? at->second : which == kJitCompile ? "disable" : "0";
}

}  // namespace

extern "C" {

aclError aclSetCompileopt(aclCompileOpt which, const char* value) {
    if (value == nullptr) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclSetCompileopt: the value is null");
    }
    std::lock_guard lock(options_mutex());
    options()[which] = value;
    return acl::SUCCESS;
}

size_t aclGetCompileoptSize(aclCompileOpt which) { return option(which).size() + 1; }

aclError aclGetCompileopt(aclCompileOpt which, char* value, size_t size) {
    std::string text = option(which);
    if (value == nullptr || size < text.size() + 1) {
        return flexnpu_emu_fail(acl::INVALID_PARAM, "aclGetCompileopt: %zu bytes are needed",
                                text.size() + 1);
    }
    std::memcpy(value, text.c_str(), text.size() + 1);
    return acl::SUCCESS;
}
}
