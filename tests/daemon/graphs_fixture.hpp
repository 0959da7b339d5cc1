// What the tests of graphs share: events, graphs and operators that end with their scope, and what the vendor
// captured.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "client_fixture.hpp"

namespace flexnpu::test {

inline uint64_t number(const void* p) { return reinterpret_cast<uint64_t>(p); }

struct EventOf {
    aclrtEvent e = nullptr;
    explicit EventOf(uint32_t flags = 0) { REQUIRE(client().aclrtCreateEventWithFlag(&e, flags) == 0); }
    ~EventOf() { CHECK(client().aclrtDestroyEvent(e) == 0); }
};
struct GraphOf {
    aclmdlRI g = nullptr;
    ~GraphOf() {
        if (g) CHECK(client().aclmdlRIDestroy(g) == 0);
    }
};

inline int abs(void* from, void* to, int64_t n, aclrtStream s) {
    const int64_t dims[] = {n}, strides[] = {1};
    aclTensor* a = client().aclCreateTensor(dims, 1, acl::FLOAT, strides, 0, acl::ND, dims, 1, from);
    aclTensor* b = client().aclCreateTensor(dims, 1, acl::FLOAT, strides, 0, acl::ND, dims, 1, to);
    uint64_t workspace = 0;
    aclOpExecutor* e = nullptr;
    int r = client().aclnnAbsGetWorkspaceSize(a, b, &workspace, &e);
    if (r == 0)
        r = client().aclnnAbs(nullptr, 0, e, s);  // less than it needs: the daemon has a workspace of its own
    client().aclDestroyTensor(a);
    client().aclDestroyTensor(b);
    return r;
}

inline aclmdlRICaptureStatus status_of(aclrtStream s, aclmdlRI* model = nullptr) {
    aclmdlRICaptureStatus status = -1;
    REQUIRE(client().aclmdlRICaptureGetInfo(s, &status, model) == 0);
    return status;
}

inline bool eventually(const std::function<bool()>& f) {
    for (int i = 0; i < 500; i++) {
        if (f()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
}

// What the vendor's last graph captured, in order.
inline std::vector<MockCall> captured(uint64_t from) {
    std::vector<MockCall> out;
    void* model = nullptr;
    for (const MockCall& c : mock().since(from)) {
        if (c.what == 'B')
            model = c.model, out.clear();
        else if (model && c.model == model && std::strchr("lcmvVrw", c.what))
            out.push_back(c);
    }
    return out;
}
inline std::string kinds(const std::vector<MockCall>& calls) {
    std::string out;
    for (const MockCall& c : calls) out += c.what;
    return out;
}

}  // namespace flexnpu::test
