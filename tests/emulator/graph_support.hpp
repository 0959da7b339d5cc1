// What the tests of captured graphs share.
#pragma once

#include <doctest/doctest.h>

#include <unistd.h>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "support.hpp"

namespace flexnpu::emulator::test {

struct Memory {
    void* p = nullptr;
    explicit Memory(size_t size) {
        REQUIRE(aclrtMalloc(&p, size, 0) == 0);
        REQUIRE(aclrtMemset(p, size, 0, size) == 0);
    }
    ~Memory() { aclrtFree(p); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    uint64_t word() const {
        uint64_t value = 0;
        REQUIRE(aclrtMemcpy(&value, 8, p, 8, acl::DEVICE_TO_HOST) == 0);
        return value;
    }
    void set(uint64_t value) const { REQUIRE(aclrtMemcpy(p, 8, &value, 8, acl::HOST_TO_DEVICE) == 0); }
};

struct External {
    aclrtEvent handle = nullptr;
    External() { REQUIRE(aclrtCreateEventExWithFlag(&handle, acl::EVENT_EXTERNAL) == 0); }
    ~External() { aclrtDestroyEvent(handle); }
    External(const External&) = delete;
    External& operator=(const External&) = delete;
    operator aclrtEvent() const { return handle; }
};

// What `body` enqueues, as a graph.
template <class Body>
aclmdlRI capture(aclrtStream stream, Body&& body, int32_t mode = acl::CAPTURE_GLOBAL) {
    REQUIRE(aclmdlRICaptureBegin(stream, mode) == 0);
    body();
    aclmdlRI graph = nullptr;
    REQUIRE(aclmdlRICaptureEnd(stream, &graph) == 0);
    REQUIRE(graph != nullptr);
    return graph;
}

inline std::string json_of(aclmdlRI graph) {
    std::string path = "/tmp/flexnpu-graph-" + std::to_string(getpid()) + ".json";
    REQUIRE(aclmdlRIDebugJsonPrint(graph, path.c_str(), 0) == 0);
    std::ifstream file(path);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    unlink(path.c_str());
    return text;
}

inline size_t count(const std::string& text, const std::string& part) {
    size_t found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
        ++found;
    }
    return found;
}

inline size_t nodes_of(aclmdlRI graph) { return count(json_of(graph), "\"ph\": \"X\""); }

}  // namespace flexnpu::emulator::test
