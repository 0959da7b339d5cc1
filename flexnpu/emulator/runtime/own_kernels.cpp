#include "flexnpu/emulator/runtime/own_kernels.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::fail;

namespace {

enum class Body { Scale, Sum };
struct KernelLine {
    std::string name;
    Body body;
};
struct Code {
    std::vector<KernelLine> kernels;
};
// A binary, or a kernel in it.
struct Loaded {
    std::shared_ptr<Code> code;
    int line = -1;
};

emu::HandleTable<Loaded>& table() {
    static auto* all = new emu::HandleTable<Loaded>(emu::HandleKind::Code);
    return *all;
}

constexpr size_t kMaxArguments = 64 << 10;
constexpr const char* kHead = "flexnpu-emu-kernels 1";

// One launch: what run() needs, however often a graph replays it.
struct Job {
    std::shared_ptr<Code> code;
    int line;
    std::vector<uint64_t> words;
    size_t size;
    const void* on_device = nullptr;

    // The n bytes at a device address, or in our own arguments; nullptr: neither.
    const void* at(uint64_t address, uint64_t bytes) const {
        const auto base = reinterpret_cast<uint64_t>(words.data());
        if (address >= base && address - base <= size && bytes <= size - (address - base)) {
            return reinterpret_cast<const void*>(address);
        }
        return memory(address, bytes);
    }
    static float* memory(uint64_t address, uint64_t bytes) {
        return bytes < uint64_t(1) << 60 &&
                       flexnpu_emu_is_device_range(reinterpret_cast<void*>(address), bytes)
                   ? reinterpret_cast<float*>(address)
                   : nullptr;
    }

    int run() {
        uint64_t a[4] = {};
        const void* from =
            on_device != nullptr
                ? static_cast<const void*>(memory(reinterpret_cast<uint64_t>(on_device), sizeof a))
                : words.data();
        if (size < sizeof a || from == nullptr) {
            return acl::RT_AICORE_EXCEPTION;
        }
        std::memcpy(a, from, sizeof a);
        if (code->kernels[size_t(line)].body == Body::Scale) {
            float factor;
            std::memcpy(&factor, &a[3], sizeof factor);
            float* out = memory(a[0], a[2] * sizeof(float));
            const float* in = memory(a[1], a[2] * sizeof(float));
            if (a[2] >> 40 != 0 || out == nullptr || in == nullptr) {
                return acl::RT_AICORE_EXCEPTION;
            }
            for (uint64_t i = 0; i < a[2]; i++) {
                out[i] = in[i] * factor;
            }
            return 0;
        }
        const auto* list =
            a[2] >> 16 == 0 && a[1] % 8 == 0 ? static_cast<const uint64_t*>(at(a[1], a[2] * 8)) : nullptr;
        float* out = a[3] >> 40 == 0 ? memory(a[0], a[3] * sizeof(float)) : nullptr;
        if (list == nullptr || out == nullptr) {
            return acl::RT_AICORE_EXCEPTION;
        }
        std::vector<const float*> in;
        for (uint64_t k = 0; k < a[2]; k++) {
            in.push_back(memory(list[k], a[3] * sizeof(float)));
            if (in.back() == nullptr) {
                return acl::RT_AICORE_EXCEPTION;
            }
        }
        for (uint64_t i = 0; i < a[3]; i++) {
            float sum = 0;
            for (const float* one : in) {
                sum += one[i];
            }
            out[i] = sum;
        }
        return 0;
    }
};

aclError load(const char* function, const void* data, size_t size, aclrtBinHandle* out) {
    if (data == nullptr || size == 0 || out == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: null data or output, or length 0", function);
    }
    std::istringstream text(std::string(static_cast<const char*>(data), size));
    std::string line;
    if (!std::getline(text, line) || line != kHead) {
        return fail(acl::INVALID_PARAM, "%s: not a binary of the emulated device", function);
    }
    auto code = std::make_shared<Code>();
    while (std::getline(text, line)) {
        std::istringstream words(line);
        std::string name, body;
        words >> name >> body;
        if (body != "scale" && body != "sum") {
            return fail(acl::INVALID_PARAM, "%s: the emulated device knows no kernel '%s'", function,
                        body.c_str());
        }
        code->kernels.push_back({name, body == "scale" ? Body::Scale : Body::Sum});
    }
    *out = table().add(std::make_shared<Loaded>(Loaded{std::move(code)}));
    return *out != nullptr ? 0 : fail(acl::RT_INTERNAL, "%s: no more binaries", function);
}

aclError find(const char* function, aclrtBinHandle binary, aclrtFuncHandle* out, auto matches) {
    if (binary == nullptr || out == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the binary or the output is null", function);
    }
    auto found = table().get(binary);
    if (!found || found->line >= 0) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a binary", function, binary);
    }
    for (size_t i = 0; i < found->code->kernels.size(); i++) {
        if (matches(i, found->code->kernels[i])) {
            *out = table().add(std::make_shared<Loaded>(Loaded{found->code, int(i)}));
            return *out != nullptr ? 0 : fail(acl::RT_INTERNAL, "%s: no more functions", function);
        }
    }
    return fail(acl::KERNEL_NOT_FOUND, "%s: no such kernel in the binary", function);
}

}  // namespace

namespace flexnpu::emulator {

aclError launch_own_kernel(const char* name, aclrtFuncHandle function, uint32_t blocks, aclrtStream handle,
                           const void* arguments, size_t size, const aclrtPlaceHolderInfo* place_holders,
                           size_t count) {
    if (function == nullptr || blocks == 0 || arguments == nullptr || size > kMaxArguments ||
        (count != 0 && place_holders == nullptr)) {
        return fail(acl::INVALID_PARAM, "%s: null function or arguments, no blocks, or too many arguments",
                    name);
    }
    const bool on_device =
        place_holders == nullptr && size != 0 && flexnpu_emu_is_device_range(arguments, size);
    std::shared_ptr<Stream> stream;
    if (int32_t error = find_stream(name, handle, &stream)) {
        return error;
    }
    auto found = table().get(function);
    if (!found || found->line < 0) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a function", name, function);
    }
    auto job =
        std::make_unique<Job>(Job{found->code, found->line, std::vector<uint64_t>((size + 7) / 8), size});
    if (on_device) {
        job->on_device = arguments;
    } else {
        std::memcpy(job->words.data(), arguments, size);
    }
    auto* bytes = reinterpret_cast<uint8_t*>(job->words.data());
    for (size_t i = 0; i < count; i++) {
        const aclrtPlaceHolderInfo& h = place_holders[i];
        if (size < sizeof(uint64_t) || h.address > size - sizeof(uint64_t) || h.data >= size) {
            return fail(acl::RT_PARAM_INVALID, "%s: place holder %zu is not in the arguments", name, i);
        }
        const auto address = reinterpret_cast<uint64_t>(bytes + h.data);
        std::memcpy(bytes + h.address, &address, sizeof address);
    }
    Task task;
    task.kind = TaskKind::Kernel;
    task.kernel.name = "a kernel of the program's own";
    task.kernel.cost.bytes = double(size);
    task.kernel.run = [](void* self) { return static_cast<Job*>(self)->run(); };
    task.kernel.destroy = [](void* self) { delete static_cast<Job*>(self); };
    Job* given = job.release();
    task.kernel.self = given;
    const int32_t error = append(name, *stream, std::move(task));
    if (error != 0) {
        delete given;
    }
    return error;
}

}  // namespace flexnpu::emulator

extern "C" {

aclError aclrtBinaryLoadFromData(const void* data, size_t size, const aclrtBinaryLoadOptions*,
                                 aclrtBinHandle* out) {
    return load("aclrtBinaryLoadFromData", data, size, out);
}
aclError aclrtBinaryLoadFromFile(const char* path, aclrtBinaryLoadOptions*, aclrtBinHandle* out) {
    if (path == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtBinaryLoadFromFile: the path is null");
    }
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (bytes.empty()) {
        return fail(acl::INVALID_FILE, "aclrtBinaryLoadFromFile: %s cannot be read or is empty", path);
    }
    return load("aclrtBinaryLoadFromFile", bytes.data(), bytes.size(), out);
}
aclError aclrtBinaryUnLoad(aclrtBinHandle binary) {
    if (binary == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtBinaryUnLoad: the binary is null");
    }
    auto found = table().get(binary);
    if (!found || found->line >= 0) {
        return fail(acl::RT_INVALID_HANDLE, "aclrtBinaryUnLoad: %p is not a binary", binary);
    }
    table().remove_if([&](const Loaded& one) { return one.code == found->code; });
    return 0;
}
aclError aclrtBinaryGetFunction(const aclrtBinHandle binary, const char* name, aclrtFuncHandle* out) {
    if (name == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtBinaryGetFunction: the name is null");
    }
    return find("aclrtBinaryGetFunction", binary, out,
                [name](size_t, const KernelLine& line) { return line.name == name; });
}
aclError aclrtBinaryGetFunctionByEntry(aclrtBinHandle binary, uint64_t entry, aclrtFuncHandle* out) {
    return find("aclrtBinaryGetFunctionByEntry", binary, out,
                [entry](size_t i, const KernelLine&) { return i == entry; });
}
aclError aclrtLaunchKernel(aclrtFuncHandle function, uint32_t blocks, const void* arguments, size_t size,
                           aclrtStream stream) {
    return emu::launch_own_kernel("aclrtLaunchKernel", function, blocks, stream, arguments, size, nullptr, 0);
}
aclError aclrtLaunchKernelV2(aclrtFuncHandle function, uint32_t blocks, const void* arguments, size_t size,
                             aclrtLaunchKernelCfg*, aclrtStream stream) {
    return emu::launch_own_kernel("aclrtLaunchKernelV2", function, blocks, stream, arguments, size, nullptr,
                                  0);
}
}
