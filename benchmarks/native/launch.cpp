// Costs of AscendCL calls as their caller sees them, by whatever libraries the library path names. Prints one JSON object.
//
//   launch [ROUNDS]
//
// first_second_ns: both calls of an operator whose shape has been seen, tensors and all else ready; batches of 256, the synchronise
// between batches is not counted. operator_to_end_ns: a batch and its synchronise, by the operator. create_ns: the same with tensors created and destroyed. sync_us: synchronise of an idle stream.
#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "acl.gen.h"

namespace acl = flexnpu::acl;

namespace {

void* libraries[2];

template <class F>
F* function(const char* name) {
    for (void* l : libraries) {
        if (void* p = dlsym(l, name)) return reinterpret_cast<F*>(p);
    }
    fprintf(stderr, "launch: no %s\n", name);
    exit(1);
}

void check(int error, const char* what) {
    if (error == 0) return;
    const char* text = function<decltype(aclGetRecentErrMsg)>("aclGetRecentErrMsg")();
    fprintf(stderr, "launch: %s: %d: %s\n", what, error, text ? text : "");
    exit(1);
}

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e9 + double(t.tv_nsec);
}

double quantile(std::vector<double> v, double q) {
    std::sort(v.begin(), v.end());
    return v[std::min(v.size() - 1, size_t(q * double(v.size())))];
}

void print(const char* name, const std::vector<double>& v, double scale, const char* end) {
    printf("  \"%s\": {\"median\": %.3f, \"p10\": %.3f, \"p90\": %.3f}%s\n", name, quantile(v, 0.5) * scale, quantile(v, 0.1) * scale,
           quantile(v, 0.9) * scale, end);
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 400;
    libraries[0] = dlopen("libascendcl.so", RTLD_NOW);
    libraries[1] = dlopen("libopapi.so", RTLD_NOW);
    if (!libraries[0] || !libraries[1]) {
        fprintf(stderr, "launch: %s\n", dlerror());
        return 1;
    }
#define USE(name) auto* name##_ = function<decltype(::name)>(#name)
    USE(aclInit); USE(aclrtSetDevice); USE(aclrtMalloc); USE(aclrtCreateStream); USE(aclrtSynchronizeStream); USE(aclCreateTensor);
    USE(aclDestroyTensor); USE(aclnnMulGetWorkspaceSize); USE(aclnnMul); USE(aclrtMemcpy); USE(aclrtCreateEventWithFlag); USE(aclrtRecordEvent);
    USE(aclrtQueryEventStatus); USE(aclrtMemcpyAsync); USE(aclrtMallocHost);
    check(aclInit_(nullptr), "aclInit");
    check(aclrtSetDevice_(0), "aclrtSetDevice");
    constexpr int64_t n = 256;
    void *a, *b, *c, *big, *host;
    constexpr size_t kBig = size_t(64) << 20;
    check(aclrtMalloc_(&a, n * 4, 0), "aclrtMalloc");
    check(aclrtMalloc_(&b, n * 4, 0), "aclrtMalloc");
    check(aclrtMalloc_(&c, n * 4, 0), "aclrtMalloc");
    check(aclrtMalloc_(&big, kBig, 0), "aclrtMalloc");
    check(aclrtMallocHost_(&host, kBig), "aclrtMallocHost");
    aclrtStream stream;
    check(aclrtCreateStream_(&stream), "aclrtCreateStream");
    aclrtEvent event;
    check(aclrtCreateEventWithFlag_(&event, acl::EVENT_SYNC), "aclrtCreateEventWithFlag");

    const int64_t dims[] = {1, n}, strides[] = {n, 1};
    auto tensor = [&](void* p) { return aclCreateTensor_(dims, 2, acl::FLOAT, strides, 0, acl::ND, dims, 2, p); };
    aclTensor *ta = tensor(a), *tb = tensor(b), *tc = tensor(c);
    auto launch = [&](aclTensor* x, aclTensor* y, aclTensor* z) {
        uint64_t workspace = 0;
        aclOpExecutor* executor = nullptr;
        check(aclnnMulGetWorkspaceSize_(x, y, z, &workspace, &executor), "aclnnMulGetWorkspaceSize");
        check(aclnnMul_(nullptr, 0, executor, stream), "aclnnMul");
    };
    constexpr int batch = 256;
    std::vector<double> first_second, through, create, sync, record, query, small_in, small_out, large_in, large_out, pinned_in;
    auto timed = [&](std::vector<double>& to, int count, auto&& body) {
        const double start = now();
        for (int i = 0; i < count; i++) body();
        to.push_back((now() - start) / count);
    };
    auto finish = [&] { check(aclrtSynchronizeStream_(stream), "aclrtSynchronizeStream"); };
    std::vector<char> pageable(kBig, 1);
    for (int r = 0; r < rounds; r++) {
        const double whole = now();
        timed(first_second, batch, [&] { launch(ta, tb, tc); });
        finish();
        through.push_back((now() - whole) / batch);
        timed(create, batch, [&] {
            aclTensor *x = tensor(a), *y = tensor(b), *z = tensor(c);
            launch(x, y, z);
            aclDestroyTensor_(x);
            aclDestroyTensor_(y);
            aclDestroyTensor_(z);
        });
        finish();
        timed(sync, 64, finish);
        timed(record, 64, [&] { check(aclrtRecordEvent_(event, stream), "aclrtRecordEvent"); });
        finish();
        int32_t status;
        timed(query, 64, [&] { check(aclrtQueryEventStatus_(event, &status), "aclrtQueryEventStatus"); });
        timed(small_in, 16, [&] { check(aclrtMemcpy_(a, n * 4, pageable.data(), 8, acl::HOST_TO_DEVICE), "aclrtMemcpy"); });
        timed(small_out, 16, [&] { check(aclrtMemcpy_(pageable.data(), 8, a, 8, acl::DEVICE_TO_HOST), "aclrtMemcpy"); });
        if (r % 100 == 0) {
            timed(large_in, 1, [&] { check(aclrtMemcpy_(big, kBig, pageable.data(), kBig, acl::HOST_TO_DEVICE), "aclrtMemcpy"); });
            timed(large_out, 1, [&] { check(aclrtMemcpy_(pageable.data(), kBig, big, kBig, acl::DEVICE_TO_HOST), "aclrtMemcpy"); });
            timed(pinned_in, 1, [&] {
                check(aclrtMemcpyAsync_(big, kBig, host, kBig, acl::HOST_TO_DEVICE, stream), "aclrtMemcpyAsync");
                finish();
            });
        }
    }
    printf("{\n");
    print("first_second_ns", first_second, 1, ",");
    print("operator_to_end_ns", through, 1, ",");
    print("create_ns", create, 1, ",");
    print("record_event_ns", record, 1, ",");
    print("sync_us", sync, 1e-3, ",");
    print("query_event_us", query, 1e-3, ",");
    print("copy_in_8_bytes_us", small_in, 1e-3, ",");
    print("copy_out_8_bytes_us", small_out, 1e-3, ",");
    print("copy_in_64_mib_ms", large_in, 1e-6, ",");
    print("copy_out_64_mib_ms", large_out, 1e-6, ",");
    print("copy_pinned_64_mib_ms", pinned_in, 1e-6, "");
    printf("}\n");
}
