// AscendCL by whatever libraries the library path names.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "acl.gen.h"

namespace flexnpu::program {

template <class F>
F* function(const char* name) {
    static void* const libraries[] = {dlopen("libascendcl.so", RTLD_NOW), dlopen("libopapi.so", RTLD_NOW)};
    for (void* l : libraries) {
        if (!l) continue;
        if (void* p = dlsym(l, name)) return reinterpret_cast<F*>(p);
    }
    fprintf(stderr, "no %s in the libraries: %s\n", name, dlerror());
    exit(1);
}

inline void check(int error, const char* what) {
    if (error == 0) return;
    const char* text = function<decltype(aclGetRecentErrMsg)>("aclGetRecentErrMsg")();
    fprintf(stderr, "%s: %d: %s\n", what, error, text ? text : "");
    exit(1);
}

}  // namespace flexnpu::program

// The function `name` under its own name with an underscore; and a call of it that must succeed.
#define USE(name) auto* const name##_ = flexnpu::program::function<decltype(::name)>(#name)
#define OK(name, ...) flexnpu::program::check(name##_(__VA_ARGS__), #name)
