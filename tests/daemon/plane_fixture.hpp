// A data plane over the mock vendor, in this process, and its socket.
#pragma once

#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>
#include <string>

#include "flexnpu/daemon/plane.hpp"
#include "mock_vendor/mock_vendor.hpp"

namespace flexnpu::test {

inline void* library(const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw std::runtime_error(dlerror());
    return handle;
}

template <class F>
F* symbol(void* handle, const char* name) {
    void* p = dlsym(handle, name);
    if (!p) throw std::runtime_error(std::string("no ") + name);
    return reinterpret_cast<F*>(p);
}

// The mock's own functions.
struct Mock {
    void* handle = library(FLEXNPU_MOCK_VENDOR "/libascendcl.so");
#define X(name) decltype(&::name) name = symbol<decltype(::name)>(handle, #name);
    X(mock_calls)
    X(mock_held)
    X(mock_hold)
    X(mock_fail_launch)
    X(mock_log)
    X(mock_nodes)
    X(mock_stick)
    X(mock_fail_update)
    X(mock_refuse_pins)
    X(mock_close_memory)
    X(mock_memory_waits)
    X(mock_stop_stream)
    X(mock_block_first)
    X(mock_blocked_first)
#undef X
    std::vector<MockCall> since(uint64_t from) const {
        std::vector<MockCall> out(mock_calls(from, nullptr, 0) - from);
        mock_calls(from, out.data(), out.size());
        return out;
    }
    uint64_t count() const { return mock_calls(0, nullptr, 0); }
};

inline Mock& mock() {
    static Mock m;
    return m;
}

struct Running {
    std::string directory;
    daemon::Plane plane;
    explicit Running(const daemon::Limits& limits = Running::limits())
        : directory(make_directory()), plane(FLEXNPU_MOCK_VENDOR, 0, directory + "/npu0.sock", {}, limits) {
        setenv("FLEXNPU_SOCKET", path().c_str(), 1);
        plane.start();
    }
    ~Running() {
        plane.stop();
        std::filesystem::remove_all(directory);
    }
    std::string path() const { return directory + "/npu0.sock"; }
    static daemon::Limits limits() {
        daemon::Limits l;
        l.allow_kernels = 1;
        return l;
    }
    static std::string make_directory() {
        char name[] = "/tmp/flexnpu-test-XXXXXX";
        return mkdtemp(name) ? name : throw std::runtime_error("mkdtemp");
    }
};

}  // namespace flexnpu::test
