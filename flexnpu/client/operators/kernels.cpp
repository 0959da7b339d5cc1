// Kernels of the program's own, which only a daemon serves that was told to (flexnpud --allow-kernels).
// Binaries travel whole, in pieces of records; arguments travel with each launch. The device addresses in
// arguments are the program's affair: nobody can find them there.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mutex>
#include <set>

#include "acl.gen.h"
#include "flexnpu/api/guest.hpp"
#include "flexnpu/api/kernel_types.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
namespace kernel = flexnpu::kernel;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::number;
using flexnpu::client::Session;
using Call = wire::Kernel::Call;

// aclrtCreateBinary: a copy of the program's bytes.
struct ProgramBinary {
    std::vector<uint8_t> bytes;
};

namespace {

constexpr size_t kPiece = 48 << 10;

std::mutex& created_mutex() {
    static auto* mutex = new std::mutex;
    return *mutex;
}
std::set<const ProgramBinary*>& created() {
    static auto* all = new std::set<const ProgramBinary*>;
    return *all;
}

[[maybe_unused]] const bool created_held = (flexnpu::client::hold_over_fork(created_mutex()), true);

// The thread's ring, for a call that names this binary or function; nullptr with the error recorded.
Channel* channel(const char* function) {
    Channel* c = Session::channel();
    if (!c || c->session().device() == 0) return c;
    // Addresses of other devices carry their number, which a kernel would take for part of the address.
    fail(acl::API_NOT_SUPPORTED, "%s: FlexNPU serves kernels of a program's own on its first device only",
         function);
    return nullptr;
}

int32_t ask(Channel& c, Call call, uint64_t handle, uint64_t bytes, const void* more = nullptr,
            size_t more_bytes = 0, uint32_t count = 0) {
    const wire::Kernel k{call, count, handle, bytes};
    return c.call(wire::Kind::kernel, &k, sizeof(k), more, more_bytes);
}

aclError load(const char* function, const void* data, size_t bytes, const aclrtBinaryLoadOptions* options,
              aclrtBinHandle* out) {
    if (!data || bytes == 0 || !out)
        return fail(acl::INVALID_PARAM, "%s: null data or output, or length 0", function);
    const uint32_t count = options ? options->count : 0;
    if (count > kernel::kMaxOptions || (count && !options->options))
        return fail(acl::INVALID_PARAM, "%s: %u options", function, count);
    Channel* c = channel(function);
    if (!c) return flexnpu::client::last_error();
    if (int32_t e = ask(*c, Call::begin, 0, bytes)) return e;
    const auto* p = static_cast<const uint8_t*>(data);
    for (size_t at = 0; at < bytes; at += kPiece) {
        const size_t n = std::min(kPiece, bytes - at);
        if (int32_t e = ask(*c, Call::data, 0, n, p + at, n)) return e;
    }
    if (int32_t e = ask(*c, Call::load, 0, 0, count ? options->options : nullptr,
                        count * sizeof(aclrtBinaryLoadOption), count))
        return e;
    *out = reinterpret_cast<void*>(c->words()[0]);
    return 0;
}

aclError find(const char* function, Call call, aclrtBinHandle binary, uint64_t bytes, const void* name,
              aclrtFuncHandle* out) {
    if (!binary || !out) return fail(acl::INVALID_PARAM, "%s: the binary or the output is null", function);
    Channel* c = channel(function);
    if (!c) return flexnpu::client::last_error();
    if (int32_t e = ask(*c, call, number(binary), bytes, name, name ? bytes : 0)) return e;
    *out = reinterpret_cast<void*>(c->words()[0]);
    return 0;
}

struct Arguments {
    const void* on_device = nullptr;
    const void* on_host = nullptr;
    size_t bytes = 0;
    const aclrtPlaceHolderInfo* place_holders = nullptr;
    size_t count = 0;
};

aclError launch(const char* function, aclrtFuncHandle f, uint32_t blocks, const aclrtLaunchKernelCfg* config,
                const Arguments& a, aclrtStream stream) {
    if (!f || blocks == 0 || (!a.on_device && !a.on_host))
        return fail(acl::INVALID_PARAM, "%s: null function or arguments, or no blocks", function);
    if (a.bytes > kernel::kMaxArgumentBytes || a.count > kernel::kMaxPlaceHolders ||
        (a.count && !a.place_holders)) {
        return fail(acl::INVALID_PARAM,
                    "%s: %zu bytes of arguments, %zu place holders: FlexNPU takes %llu and %u", function,
                    a.bytes, a.count, static_cast<unsigned long long>(kernel::kMaxArgumentBytes),
                    kernel::kMaxPlaceHolders);
    }
    const uint32_t attributes = config ? config->count : 0;
    if (attributes > kernel::kMaxAttributes || (attributes && !config->attributes))
        return fail(acl::INVALID_PARAM, "%s: %u attributes", function, attributes);
    Channel* c = channel(function);
    if (!c) return flexnpu::client::last_error();
    if (aclError e = flexnpu::client::check_stream(c->session(), function, number(stream))) return e;
    const size_t inline_bytes = a.on_device ? 0 : a.bytes;
    const size_t tables = attributes * sizeof(aclrtLaunchKernelAttr) + a.count * sizeof(aclrtPlaceHolderInfo);
    const size_t payload = sizeof(wire::LaunchKernel) + wire::round8(tables + inline_bytes);
    uint8_t* p = c->open(payload);
    if (!p) return flexnpu::client::last_error();
    const wire::LaunchKernel l{number(stream), number(f),  number(a.on_device), a.bytes,
                               blocks,         attributes, uint32_t(a.count),   0};
    std::memcpy(p, &l, sizeof(l));
    p += sizeof(l);
    auto put = [&p](const void* from, size_t n) {
        if (n) std::memcpy(p, from, n);
        p += n;
    };
    put(attributes ? config->attributes : nullptr, attributes * sizeof(aclrtLaunchKernelAttr));
    put(a.place_holders, a.count * sizeof(aclrtPlaceHolderInfo));
    put(a.on_host, inline_bytes);
    c->close(payload, wire::Kind::launch_kernel);
    Session& session = c->session();
    session.step_open.store(true, std::memory_order_relaxed);
    session.steps.launched(session.step_lane(number(stream)));
    return 0;
}

}  // namespace

extern "C" {

aclError aclrtBinaryLoadFromData(const void* data, size_t bytes, const aclrtBinaryLoadOptions* options,
                                 aclrtBinHandle* out) {
    return load("aclrtBinaryLoadFromData", data, bytes, options, out);
}

aclError aclrtBinaryLoadFromFile(const char* path, aclrtBinaryLoadOptions* options, aclrtBinHandle* out) {
    if (!path) return fail(acl::INVALID_PARAM, "aclrtBinaryLoadFromFile: the path is null");
    const int fd = flexnpu::guest::above_standard(open(path, O_RDONLY | O_CLOEXEC));
    struct stat st{};
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 ||
        uint64_t(st.st_size) > kernel::kMaxBinaryBytes) {
        if (fd >= 0) close(fd);
        return fail(acl::INVALID_FILE,
                    "aclrtBinaryLoadFromFile: %s cannot be read, is empty or larger than 256 MiB", path);
    }
    std::vector<uint8_t> bytes(size_t(st.st_size));
    size_t have = 0;
    for (ssize_t n; have < bytes.size() && (n = read(fd, bytes.data() + have, bytes.size() - have)) > 0;)
        have += size_t(n);
    close(fd);
    if (have != bytes.size())
        return fail(acl::INVALID_FILE, "aclrtBinaryLoadFromFile: %s cannot be read whole", path);
    return load("aclrtBinaryLoadFromFile", bytes.data(), bytes.size(), options, out);
}

aclrtBinary aclrtCreateBinary(const void* data, size_t bytes) {
    if (!data || bytes == 0 || bytes > kernel::kMaxBinaryBytes) {
        fail(acl::INVALID_PARAM, "aclrtCreateBinary: null data, or %zu bytes", bytes);
        return nullptr;
    }
    const auto* p = static_cast<const uint8_t*>(data);
    auto* made = new ProgramBinary{{p, p + bytes}};
    std::lock_guard lock(created_mutex());
    created().insert(made);
    return made;
}

aclError aclrtDestroyBinary(aclrtBinary binary) {
    std::lock_guard lock(created_mutex());
    const auto* made = static_cast<const ProgramBinary*>(binary);
    if (created().erase(made) == 0)
        return fail(acl::INVALID_PARAM, "aclrtDestroyBinary: %p is not a binary", binary);
    delete made;
    return 0;
}

aclError aclrtBinaryLoad(const aclrtBinary binary, aclrtBinHandle* out) {
    std::vector<uint8_t> bytes;
    {
        std::lock_guard lock(created_mutex());
        const auto* made = static_cast<const ProgramBinary*>(binary);
        if (!created().contains(made))
            return fail(acl::INVALID_PARAM, "aclrtBinaryLoad: %p is not a binary", binary);
        bytes = made->bytes;
    }
    return load("aclrtBinaryLoad", bytes.data(), bytes.size(), nullptr, out);
}

aclError aclrtBinaryUnLoad(aclrtBinHandle binary) {
    if (!binary) return fail(acl::INVALID_PARAM, "aclrtBinaryUnLoad: the binary is null");
    Channel* c = channel("aclrtBinaryUnLoad");
    return c ? ask(*c, Call::unload, number(binary), 0) : flexnpu::client::last_error();
}

aclError aclrtBinaryGetFunction(const aclrtBinHandle binary, const char* name, aclrtFuncHandle* out) {
    if (!name || strlen(name) > kernel::kMaxName)
        return fail(acl::INVALID_PARAM, "aclrtBinaryGetFunction: the name is null or too long");
    return find("aclrtBinaryGetFunction", Call::function, binary, strlen(name), name, out);
}
aclError aclrtBinaryGetFunctionByEntry(aclrtBinHandle binary, uint64_t entry, aclrtFuncHandle* out) {
    return find("aclrtBinaryGetFunctionByEntry", Call::function_by_entry, binary, entry, nullptr, out);
}

aclError aclrtGetFunctionAddr(aclrtFuncHandle function, void** cube, void** vector) {
    if (!function || !cube || !vector)
        return fail(acl::INVALID_PARAM, "aclrtGetFunctionAddr: the function or an output is null");
    Channel* c = channel("aclrtGetFunctionAddr");
    if (!c) return flexnpu::client::last_error();
    if (int32_t e = ask(*c, Call::function_address, number(function), 0)) return e;
    *cube = reinterpret_cast<void*>(c->words()[0]);
    *vector = reinterpret_cast<void*>(c->words()[1]);
    return 0;
}

aclError aclrtGetHardwareSyncAddr(void** address) {
    if (!address) return fail(acl::INVALID_PARAM, "aclrtGetHardwareSyncAddr: the output is null");
    Channel* c = channel("aclrtGetHardwareSyncAddr");
    if (!c) return flexnpu::client::last_error();
    if (int32_t e = ask(*c, Call::sync_address, 0, 0)) return e;
    *address = reinterpret_cast<void*>(c->words()[0]);
    return 0;
}

aclError aclrtLaunchKernel(aclrtFuncHandle f, uint32_t blocks, const void* arguments, size_t bytes,
                           aclrtStream stream) {
    return launch("aclrtLaunchKernel", f, blocks, nullptr, {.on_device = arguments, .bytes = bytes}, stream);
}
aclError aclrtLaunchKernelV2(aclrtFuncHandle f, uint32_t blocks, const void* arguments, size_t bytes,
                             aclrtLaunchKernelCfg* config, aclrtStream stream) {
    return launch("aclrtLaunchKernelV2", f, blocks, config, {.on_device = arguments, .bytes = bytes}, stream);
}
aclError aclrtLaunchKernelWithHostArgs(aclrtFuncHandle f, uint32_t blocks, aclrtStream stream,
                                       aclrtLaunchKernelCfg* config, void* arguments, size_t bytes,
                                       aclrtPlaceHolderInfo* place_holders, size_t count) {
    return launch("aclrtLaunchKernelWithHostArgs", f, blocks, config,
                  {.on_host = arguments, .bytes = bytes, .place_holders = place_holders, .count = count},
                  stream);
}
}
