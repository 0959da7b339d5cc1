// Memory shared between processes: export keys of allocations, shareable handles of physical memory.
//
// An import maps the exporter's part of its memory file: nothing is copied. The exporter's free takes the
// memory from it, but nobody else gets it until the last importer has closed it; its death leaves it to the
// importers (uncounted by the device).
#include <unistd.h>
#include <charconv>
#include <cstring>
#include <map>
#include <mutex>

#include "acl.gen.h"
#include "flexnpu/emulator/runtime/lookup.hpp"
#include "flexnpu/emulator/runtime/runtime.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
using emu::fail;
using emu::PhysicalMemory;
using emu::Runtime;
using emu::SharedDevice;

namespace {

constexpr size_t kKeyBytes = 64, kNumberBytes = 16;  // in hexadecimal digits

struct Import {
    void* address;
    std::shared_ptr<emu::Device> device;
    uint32_t times;
    int32_t pid;  // a child of fork() has none of its parent's
};
std::mutex imports_mutex;
std::map<std::string, Import> imports;

int32_t this_device(const char* function, std::shared_ptr<emu::Device>* device) {
    auto context = Runtime::get().current_context();
    if (!context) {
        return fail(acl::RT_CONTEXT_NULL, "%s: this thread has no device: call aclrtSetDevice first",
                    function);
    }
    *device = context->device;
    return acl::SUCCESS;
}

std::string hexadecimal(uint64_t number) {
    char text[24];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(number));
    return text;
}

int32_t refuse(const char* function, SharedDevice::Import answer) {
    switch (answer) {
        case SharedDevice::Import::Own:
            return fail(acl::RT_PARAM_INVALID, "%s: the memory is this process's own", function);
        case SharedDevice::Import::NotAllowed:
            return fail(acl::RT_PARAM_INVALID, "%s: the exporter has not allowed process %d", function,
                        int(getpid()));
        case SharedDevice::Import::NotReachable:
            return fail(acl::RT_PARAM_INVALID,
                        "%s: the exporter's memory cannot be opened in /proc: it belongs to another user",
                        function);
        case SharedDevice::Import::Full:
            return fail(acl::RT_INTERNAL, "%s: too many processes have imported it", function);
        default: break;
    }
    return fail(acl::RT_PARAM_INVALID, "%s: no such key, or its owner has freed the memory or has ended",
                function);
}

// The memory behind a key, mapped nowhere yet.
int32_t import_memory(const char* function, const std::string& key,
                      const std::shared_ptr<emu::Device>& device, std::shared_ptr<PhysicalMemory>* memory) {
    SharedDevice::Imported found;
    auto answer = device->shared.take_import(key, &found);
    if (answer != SharedDevice::Import::Done) {
        return refuse(function, answer);
    }
    *memory = std::make_shared<PhysicalMemory>(device, found.fd, found.offset, found.size,
                                               [device, key] { device->shared.end_import(key); });
    return acl::SUCCESS;
}

int32_t allow(const char* function, const std::string& key, const int32_t* processes, size_t n) {
    std::shared_ptr<emu::Device> device;
    if (processes == nullptr || n == 0) {
        return fail(acl::INVALID_PARAM, "%s: the list of processes is null or empty", function);
    }
    if (int32_t error = this_device(function, &device)) {
        return error;
    }
    if (!device->shared.allow_export(key, processes, n)) {
        return fail(acl::RT_PARAM_INVALID, "%s: not of an export of this process, or more than 32 processes",
                    function);
    }
    return acl::SUCCESS;
}

int32_t export_physical(const char* function, aclrtDrvMemHandle handle, uint64_t flags, uint64_t* number) {
    auto memory = Runtime::get().physical_memory.get(handle);
    if (!memory) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a handle of physical memory", function, handle);
    }
    if (number == nullptr || memory->imported()) {
        return fail(acl::RT_PARAM_INVALID, "%s: the output is null, or the memory is another process's",
                    function);
    }
    std::string key = memory->device->shared.add_export(memory->fd, memory->offset, memory->size,
                                                        (flags & acl::EXPORT_ANY_PID) != 0, kNumberBytes);
    if (key.empty()) {
        return fail(acl::RT_INTERNAL, "%s: too much is exported already", function);
    }
    std::from_chars(key.data(), key.data() + key.size(), *number, 16);
    return acl::SUCCESS;
}

int32_t import_physical(const char* function, uint64_t number, aclrtDrvMemHandle* handle) {
    std::shared_ptr<emu::Device> device;
    if (handle == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the output is null", function);
    }
    *handle = nullptr;
    if (int32_t error = this_device(function, &device)) {
        return error;
    }
    std::shared_ptr<PhysicalMemory> memory;
    if (int32_t error = import_memory(function, hexadecimal(number), device, &memory)) {
        return error;
    }
    *handle = Runtime::get().physical_memory.add(std::move(memory));
    return *handle != nullptr ? int32_t(acl::SUCCESS)
                              : fail(acl::RT_INTERNAL, "%s: no more handles", function);
}

int32_t check_type(const char* function, aclrtMemSharedHandleType type, const void* handle) {
    if (handle == nullptr) {
        return fail(acl::INVALID_PARAM, "%s: the handle is null", function);
    }
    if (type != acl::SHARE_DEFAULT) {
        return fail(type == acl::SHARE_FABRIC ? acl::API_NOT_SUPPORTED : acl::RT_PARAM_INVALID,
                    "%s: handle type %d, which the emulated device does not have", function, type);
    }
    return acl::SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtIpcMemGetExportKey(void* p, size_t size, char* key, size_t room, uint64_t flags) {
    if (key == nullptr || room < kKeyBytes + 1) {
        return fail(acl::INVALID_PARAM, "aclrtIpcMemGetExportKey: a key needs %zu bytes", kKeyBytes + 1);
    }
    auto device = Runtime::get().owner(p);
    auto block = device ? device->memory.find(p) : std::nullopt;
    if (!block || size == 0 || !device->memory.contains_range(p, size)) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtIpcMemGetExportKey: the memory was not allocated by aclrtMalloc");
    }
    std::string made = device->shared.add_export(device->memory.fd(), device->memory.offset_of(p), size,
                                                 (flags & acl::EXPORT_ANY_PID) != 0, kKeyBytes);
    if (made.empty()) {
        return fail(acl::RT_INTERNAL, "aclrtIpcMemGetExportKey: too much is exported already");
    }
    std::memcpy(key, made.c_str(), made.size() + 1);
    return acl::SUCCESS;
}
aclError aclrtIpcMemSetImportPid(const char* key, int32_t* processes, size_t n) {
    if (key == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtIpcMemSetImportPid: the key is null");
    }
    return allow("aclrtIpcMemSetImportPid", key, processes, n);
}
aclError aclrtIpcMemImportByKey(void** p, const char* key, uint64_t) {
    if (p == nullptr || key == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtIpcMemImportByKey: an argument is null");
    }
    *p = nullptr;
    std::shared_ptr<emu::Device> device;
    if (int32_t error = this_device("aclrtIpcMemImportByKey", &device)) {
        return error;
    }
    std::lock_guard lock(imports_mutex);
    if (auto known = imports.find(key); known != imports.end() && known->second.pid == getpid()) {
        ++known->second.times;
        *p = known->second.address;
        return acl::SUCCESS;
    }
    std::shared_ptr<PhysicalMemory> memory;
    if (int32_t error = import_memory("aclrtIpcMemImportByKey", key, device, &memory)) {
        return error;
    }
    *p = Runtime::get().addresses.attach(std::move(memory));
    if (*p == nullptr) {
        return fail(acl::RT_MEMORY_ALLOCATION, "aclrtIpcMemImportByKey: the host cannot map the memory");
    }
    imports[key] = {*p, device, 1, int32_t(getpid())};
    return acl::SUCCESS;
}
aclError aclrtIpcMemClose(const char* key) {
    if (key == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtIpcMemClose: the key is null");
    }
    std::unique_lock lock(imports_mutex);
    auto known = imports.find(key);
    if (known != imports.end() && known->second.pid == getpid()) {
        if (--known->second.times > 0) {
            return acl::SUCCESS;
        }
        Import last = known->second;
        imports.erase(known);
        lock.unlock();
        // What still runs may touch it.
        for (const auto& stream : Runtime::get().streams(last.device->index)) {
            stream->synchronize(std::nullopt);
        }
        Runtime::get().addresses.detach(last.address);
        return acl::SUCCESS;
    }
    lock.unlock();
    std::shared_ptr<emu::Device> device;
    if (int32_t error = this_device("aclrtIpcMemClose", &device)) {
        return error;
    }
    if (!device->shared.end_export(key)) {
        return fail(acl::RT_PARAM_INVALID,
                    "aclrtIpcMemClose: the key is of no export or import of this process");
    }
    return acl::SUCCESS;
}

aclError aclrtMemExportToShareableHandle(aclrtDrvMemHandle handle, aclrtMemHandleType, uint64_t flags,
                                         uint64_t* number) {
    if (number == nullptr) {
        return fail(acl::INVALID_PARAM, "aclrtMemExportToShareableHandle: the output is null");
    }
    return export_physical("aclrtMemExportToShareableHandle", handle, flags, number);
}
aclError aclrtMemExportToShareableHandleV2(aclrtDrvMemHandle handle, uint64_t flags,
                                           aclrtMemSharedHandleType type, void* number) {
    if (int32_t error = check_type("aclrtMemExportToShareableHandleV2", type, number)) {
        return error;
    }
    return export_physical("aclrtMemExportToShareableHandleV2", handle, flags,
                           static_cast<uint64_t*>(number));
}
aclError aclrtMemSetPidToShareableHandle(uint64_t number, int32_t* processes, size_t n) {
    return allow("aclrtMemSetPidToShareableHandle", hexadecimal(number), processes, n);
}
aclError aclrtMemSetPidToShareableHandleV2(void* number, aclrtMemSharedHandleType type, int32_t* processes,
                                           size_t n) {
    if (int32_t error = check_type("aclrtMemSetPidToShareableHandleV2", type, number)) {
        return error;
    }
    return allow("aclrtMemSetPidToShareableHandleV2", hexadecimal(*static_cast<uint64_t*>(number)), processes,
                 n);
}
aclError aclrtMemImportFromShareableHandle(uint64_t number, int32_t, aclrtDrvMemHandle* handle) {
    return import_physical("aclrtMemImportFromShareableHandle", number, handle);
}
aclError aclrtMemImportFromShareableHandleV2(void* number, aclrtMemSharedHandleType type, uint64_t,
                                             aclrtDrvMemHandle* handle) {
    if (int32_t error = check_type("aclrtMemImportFromShareableHandleV2", type, number)) {
        return error;
    }
    return import_physical("aclrtMemImportFromShareableHandleV2", *static_cast<uint64_t*>(number), handle);
}
}
