#include "flexnpu/daemon/vendor.hpp"

#include <dlfcn.h>
#include <glob.h>

#include <stdexcept>

namespace flexnpu::daemon {

Vendor::Vendor(const std::string& directory) : operators_(api::kOpCount), functions_(api::FN_COUNT) {
    // libacl_rt and libnnopbase are separate in current CANN and part of others before; libopapi may come in
    // several pieces.
    for (const char* name :
         {"libascendcl.so", "libacl_rt.so", "libnnopbase.so", "libacl_op_compiler.so", "libhccl.so"}) {
        const std::string path = directory + "/" + name;
        if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
            libraries_.push_back(library);
        } else if (std::string(name) == "libascendcl.so") {
            throw std::runtime_error("cannot load " + path + ": " + dlerror());
        }
    }
    glob_t found{};
    if (glob((directory + "/libopapi*.so").c_str(), 0, nullptr, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++) {
            if (void* library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL)) {
                libraries_.push_back(library);
            } else {
                const std::string error = dlerror();
                globfree(&found);
                throw std::runtime_error("cannot load an operator library: " + error);
            }
        }
    }
    globfree(&found);
    std::string missing;
#define X(name)                                             \
    name = reinterpret_cast<decltype(name)>(symbol(#name)); \
    if (!name) missing += std::string(missing.empty() ? "" : ", ") + #name;
    FLEXNPU_VENDOR_FUNCTIONS(X)
#undef X
#define X(name) name = reinterpret_cast<decltype(name)>(symbol(#name));
    FLEXNPU_VENDOR_OPTIONAL(X)
#undef X
    if (!missing.empty()) throw std::runtime_error("the libraries in " + directory + " lack " + missing);
}

// The libraries stay loaded: CANN's own threads may outlive us.
Vendor::~Vendor() = default;

void* Vendor::symbol(const char* name) const {
    for (void* library : libraries_) {
        if (void* p = dlsym(library, name)) return p;
    }
    return nullptr;
}

Vendor::First Vendor::first(uint32_t op) {
    Operator& o = operators_[op];
    if (!o.known) {
        const std::string name = api::kOps[op].name;
        o.only_size = name.ends_with("GetMax");  // generate.py, op_symbols
        o.first = symbol((name + (o.only_size ? "WorkspaceSize" : "GetWorkspaceSize")).c_str());
        o.second = o.only_size ? nullptr : reinterpret_cast<Second>(symbol(name.c_str()));
        o.known = true;
    }
    return o.second || o.only_size ? o.first : nullptr;
}

Vendor::Second Vendor::second(uint32_t op) { return first(op) ? operators_[op].second : nullptr; }

void* Vendor::function(api::FnId fn) {
    if (!functions_[fn]) functions_[fn] = symbol(api::kFnNames[fn]);
    return functions_[fn];
}

std::string Vendor::message(const char* what, int32_t error) const {
    const char* text = aclGetRecentErrMsg();
    if (text && *text) return text;
    return std::string(what) + " failed with error " + std::to_string(error);
}

}  // namespace flexnpu::daemon
