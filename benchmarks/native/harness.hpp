// What the measuring programs share: AscendCL by dlopen, whatever libraries the library path names; a clock;
// quantiles.
#pragma once

#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "acl.gen.h"

namespace flexnpu::bench {

template <class F>
F* function(const char* name) {
    static void* const libraries[] = {dlopen("libascendcl.so", RTLD_NOW), dlopen("libopapi.so", RTLD_NOW)};
    for (void* l : libraries) {
        if (!l) {
            fprintf(stderr, "launch: %s\n", dlerror());
            exit(1);
        }
        if (void* p = dlsym(l, name)) return reinterpret_cast<F*>(p);
    }
    fprintf(stderr, "launch: no %s\n", name);
    exit(1);
}
// Calls `name` by the prototype of the table.
#define ACL(name)                                                                 \
    ([] {                                                                         \
        static auto* const f = flexnpu::bench::function<decltype(::name)>(#name); \
        return f;                                                                 \
    }())

inline void check(int error, const char* what) {
    if (error == 0) return;
    const char* text = ACL(aclGetRecentErrMsg)();
    fprintf(stderr, "launch: %s: %d: %s\n", what, error, text ? text : "");
    exit(1);
}

inline double now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e9 + double(t.tv_nsec);
}

inline double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

// An elementwise product of two rows of 256 float32, everything ready but the call itself.
class Operator {
public:
    Operator() {
        for (void** p : {&a_, &b_, &c_}) check(ACL(aclrtMalloc)(p, kWidth * 4, 0), "aclrtMalloc");
        check(ACL(aclrtCreateStream)(&stream), "aclrtCreateStream");
        x_ = tensor(a_), y_ = tensor(b_), z_ = tensor(c_);
    }
    void launch() { launch(x_, y_, z_); }
    // With the three tensors made and destroyed, as frameworks do.
    void launch_with_tensors() {
        aclTensor *x = tensor(a_), *y = tensor(b_), *z = tensor(c_);
        launch(x, y, z);
        for (aclTensor* t : {x, y, z}) ACL(aclDestroyTensor)(t);
    }
    void finish() { check(ACL(aclrtSynchronizeStream)(stream), "aclrtSynchronizeStream"); }
    void* memory() const { return a_; }
    aclrtStream stream = nullptr;
    static constexpr int64_t kWidth = 256;

private:
    static aclTensor* tensor(void* p) {
        const int64_t dims[] = {1, kWidth}, strides[] = {kWidth, 1};
        return ACL(aclCreateTensor)(dims, 2, acl::FLOAT, strides, 0, acl::ND, dims, 2, p);
    }
    void launch(aclTensor* x, aclTensor* y, aclTensor* z) {
        uint64_t workspace = 0;
        aclOpExecutor* executor = nullptr;
        check(ACL(aclnnMulGetWorkspaceSize)(x, y, z, &workspace, &executor), "aclnnMulGetWorkspaceSize");
        check(ACL(aclnnMul)(nullptr, 0, executor, stream), "aclnnMul");
    }
    void *a_ = nullptr, *b_ = nullptr, *c_ = nullptr;
    aclTensor *x_ = nullptr, *y_ = nullptr, *z_ = nullptr;
};

}  // namespace flexnpu::bench
