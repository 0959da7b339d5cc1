// An engine that does what it is told, a command a line, and answers each with a line:
// tests/host/test_datadist.py says which. Calls libllm_datadist.so and libmetadef.so as Mooncake does:
// through declarations of its own, by the same symbols.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "acl.gen.h"

namespace ge {
class AscendString {
public:
    AscendString(const char* text);
    const char* GetString() const;
    bool operator<(const AscendString& other) const;

private:
    std::shared_ptr<std::string> text_;
};
}  // namespace ge

namespace adxl {
enum MemType { device, host };
enum TransferOp { read, write };
enum FeatureType : int32_t { automatic };
enum class TransferStatus { waiting, completed, timeout, failed };
struct MemDesc {
    uintptr_t address;
    size_t bytes;
    uint8_t reserved[128] = {};
};
struct TransferOpDesc {
    uintptr_t local, remote;
    size_t bytes;
};
struct TransferArgs {
    uint8_t reserved[128] = {};
};
class AdxlEngine {
public:
    AdxlEngine();
    ~AdxlEngine();
    uint32_t Initialize(const ge::AscendString&, const std::map<ge::AscendString, ge::AscendString>&);
    void Finalize();
    uint32_t RegisterMem(const MemDesc&, MemType, void*&);
    uint32_t DeregisterMem(void*);
    uint32_t Connect(const ge::AscendString&, int32_t);
    uint32_t Disconnect(const ge::AscendString&, int32_t);
    uint32_t TransferSync(const ge::AscendString&, TransferOp, const std::vector<TransferOpDesc>&, int32_t);
    uint32_t TransferAsync(const ge::AscendString&, TransferOp, const std::vector<TransferOpDesc>&,
                           const TransferArgs&, void*&);
    uint32_t GetTransferStatus(void* const&, TransferStatus&);
    static uint32_t GetCapability(FeatureType, int32_t&);
    static uint32_t MallocMem(MemType, size_t, void**);
    static uint32_t FreeMem(void*);
    static uint32_t ExportToShareableHandle(void*, aclrtMemFabricHandle&);

private:
    class AdxlEngineImpl;
    std::unique_ptr<AdxlEngineImpl> impl_;
};
}  // namespace adxl

namespace acl = flexnpu::acl;

namespace {

constexpr size_t kPiece = size_t(2) << 20;

void check(const char* what, int32_t error) {
    if (error == 0) return;
    std::cout << "! " << what << " " << error << " " << aclGetRecentErrMsg() << std::endl;
    std::exit(1);
}

uint64_t mapped(size_t pieces) {
    void* p = nullptr;
    check("reserve", aclrtReserveMemAddress(&p, pieces * kPiece, 0, nullptr, 1));
    aclrtPhysicalMemProp properties{};
    properties.memory = acl::MEM_HBM_HUGE;
    properties.location = {0, acl::LOCATION_DEVICE};
    for (size_t i = 0; i < pieces; i++) {
        aclrtDrvMemHandle handle = nullptr;
        check("physical", aclrtMallocPhysical(&handle, kPiece, &properties, 0));
        check("map", aclrtMapMem(static_cast<char*>(p) + i * kPiece, kPiece, 0, handle, 0));
    }
    return reinterpret_cast<uint64_t>(p);
}

class Session {
public:
    // The answer to one line.
    std::string run(const std::string& line) {
        std::istringstream in(line);
        std::string name;
        in >> name;
        std::ostringstream out;
        uint64_t a = 0, n = 0;
        std::string text, other;
        void* handle = nullptr;
        if (name == "init") {
            std::map<ge::AscendString, ge::AscendString> options;
            in >> text;
            while (in >> other) {
                const size_t at = other.find('=');
                options.emplace(other.substr(0, at).c_str(), other.substr(at + 1).c_str());
            }
            out << engine_.Initialize(text.c_str(), options);
        } else if (name == "finalize") {
            engine_.Finalize();
            out << 0;
        } else if (name == "malloc" && in >> n) {
            check("malloc", aclrtMalloc(&handle, n, 0));
            out << reinterpret_cast<uint64_t>(handle);
        } else if (name == "map" && in >> n) {
            out << mapped(n);
        } else if (name == "host" && in >> n) {
            out << adxl::AdxlEngine::MallocMem(adxl::host, n, &handle) << " "
                << reinterpret_cast<uint64_t>(handle);
        } else if (name == "free" && in >> a) {
            check("free", aclrtFree(reinterpret_cast<void*>(a)));
            out << 0;
        } else if (name == "fill" && in >> a >> n >> text) {
            check("fill", aclrtMemset(reinterpret_cast<void*>(a), n, text[0], n));
            out << 0;
        } else if (name == "look" && in >> a >> n) {
            // The bytes and how often each follows itself: "a4096b512".
            std::string bytes(n, '\0');
            check("look", aclrtMemcpy(bytes.data(), n, reinterpret_cast<void*>(a), n, acl::DEVICE_TO_HOST));
            for (size_t i = 0, next; i < n; i = next) {
                next = std::min(bytes.find_first_not_of(bytes[i], i), n);
                out << (bytes[i] >= 'a' && bytes[i] <= 'z' ? bytes[i] : '?') << next - i;
            }
        } else if (name == "register" && in >> a >> n >> text) {
            const uint32_t status =
                engine_.RegisterMem({a, n}, text == "host" ? adxl::host : adxl::device, handle);
            out << status << " " << reinterpret_cast<uint64_t>(handle);
        } else if (name == "deregister" && in >> a) {
            out << engine_.DeregisterMem(reinterpret_cast<void*>(a));
        } else if (name == "connect" && in >> text >> n) {
            out << engine_.Connect(text.c_str(), int32_t(n));
        } else if (name == "disconnect" && in >> text) {
            out << engine_.Disconnect(text.c_str(), 1000);
        } else if ((name == "read" || name == "write") && in >> text >> n) {
            out << engine_.TransferSync(text.c_str(), name == "read" ? adxl::read : adxl::write, parts(in),
                                        int32_t(n));
        } else if ((name == "start-read" || name == "start-write") && in >> text) {
            const auto operation = name == "start-read" ? adxl::read : adxl::write;
            const uint32_t status = engine_.TransferAsync(text.c_str(), operation, parts(in), {}, handle);
            out << status << " " << reinterpret_cast<uint64_t>(handle);
        } else if (name == "status" && in >> a) {
            adxl::TransferStatus state{};
            const uint32_t status = engine_.GetTransferStatus(reinterpret_cast<void*>(a), state);
            out << status << " " << int(state);
        } else if (name == "rest") {
            int32_t value = 0;
            aclrtMemFabricHandle fabric{};
            out << adxl::AdxlEngine::GetCapability(adxl::automatic, value) << " " << value << " ";
            out << adxl::AdxlEngine::GetCapability(adxl::FeatureType(99), value) << " ";
            out << adxl::AdxlEngine::MallocMem(adxl::device, 64, &handle) << " ";
            out << adxl::AdxlEngine::ExportToShareableHandle(nullptr, fabric) << " ";
            check("host memory", int32_t(adxl::AdxlEngine::MallocMem(adxl::host, 64, &handle)));
            out << adxl::AdxlEngine::FreeMem(handle);
        } else {
            out << "? " << line;
        }
        return out.str();
    }

private:
    static std::vector<adxl::TransferOpDesc> parts(std::istream& in) {
        std::vector<adxl::TransferOpDesc> all;
        adxl::TransferOpDesc one{};
        while (in >> one.local >> one.remote >> one.bytes) all.push_back(one);
        return all;
    }

    adxl::AdxlEngine engine_;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || std::string(argv[1]) != "without-device") {
        check("init", aclInit(nullptr));
        check("device", aclrtSetDevice(0));
    }
    Session session;
    for (std::string line; std::getline(std::cin, line);) std::cout << session.run(line) << std::endl;
}
