#include "flexnpu/daemon/records/kernels.hpp"

#include <cstring>

#include "flexnpu/api/kernel_types.hpp"
#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/daemon/kernels.hpp"

namespace flexnpu::daemon {

namespace {

constexpr size_t kMaxFunctions = 1 << 14;
constexpr const char* kForbidden =
    "FlexNPU: device code of the program's own could read and write every program's memory: start the daemon "
    "with flexnpud --allow-kernels to serve it";

Failure failed(const Vendor& v, const char* function, int32_t e) { return {e, v.message(function, e)}; }

// Everything that a launch hands to the vendor, in our own memory.
struct KernelLaunch {
    std::shared_ptr<Function> function;
    uint32_t blocks = 0;
    uint64_t device_arguments = 0;
    std::vector<aclrtLaunchKernelAttr> attributes;
    std::vector<aclrtPlaceHolderInfo> place_holders;
    std::vector<uint64_t> arguments;  // words, for their alignment
    uint64_t bytes = 0;
};

template <class T>
std::vector<T> read(std::span<const uint8_t>& from, size_t n) {
    std::vector<T> out(n);
    if (n) std::memcpy(out.data(), from.data(), n * sizeof(T));
    from = from.subspan(n * sizeof(T));
    return out;
}

}  // namespace

Binary::~Binary() {
    *account -= bytes.capacity();
    if (handle) Vendor::call(vendor.aclrtBinaryUnLoad, handle);
}

void KernelRecords::call(Session& s, Payload p, const Reply& reply) {
    using Call = wire::Kernel;
    wire::Kernel k;
    Payload rest;
    const auto bad = [&] { malformed(s, reply, "call about a kernel"); };
    if (!take(p, &k, &rest)) return bad();
    if (!allowed_) return refuse(s, reply, acl::API_NOT_SUPPORTED, kForbidden);
    if (!s.kernels) {
        s.kernels = std::make_shared<Kernels>();
        s.kernels->binaries.set_tag(wire::device_tag(s.device));
        s.kernels->functions.set_tag(wire::device_tag(s.device));
    }
    Kernels& kernels = *s.kernels;
    std::vector<uint8_t>* arriving = nullptr;
    if (auto at = kernels.arriving.find(reply.ring.get()); at != kernels.arriving.end())
        arriving = &at->second;
    switch (k.call) {
        case Call::begin: {
            if (!rest.empty()) return bad();
            // What came before and was never loaded goes.
            if (arriving) *kernels.bytes -= arriving->capacity();
            kernels.arriving.erase(reply.ring.get());
            if (k.bytes == 0 || k.bytes > kernel::kMaxBinaryBytes -
                                              std::min(kernels.bytes->load(), kernel::kMaxBinaryBytes)) {
                return refuse(s, reply, acl::RT_MEMORY_ALLOCATION,
                              "aclrtBinaryLoad: FlexNPU takes binaries of 1 byte to 256 MiB of one program");
            }
            std::vector<uint8_t> room;
            room.reserve(k.bytes);
            *kernels.bytes += room.capacity();
            kernels.arriving.emplace(reply.ring.get(), std::move(room));
            return reply.ok();
        }
        case Call::data:
            if (!arriving || rest.size() != wire::round8(k.bytes) || k.bytes > rest.size() ||
                k.bytes > arriving->capacity() - arriving->size())
                return bad();
            arriving->insert(arriving->end(), rest.begin(), rest.begin() + ptrdiff_t(k.bytes));
            return reply.ok();
        case Call::load: {
            if (!arriving || arriving->empty() || k.count > kernel::kMaxOptions ||
                rest.size() != wire::round8(k.count * sizeof(aclrtBinaryLoadOption)))
                return bad();
            Holding place;
            Failure failure;
            if (!s.holder->take(HeldKind::binaries, "aclrtBinaryLoad", &place, &failure))
                return refuse(s, reply, failure.code, failure.message);
            auto options = read<aclrtBinaryLoadOption>(rest, k.count);
            auto binary = std::make_shared<Binary>(vendor_, std::move(*arriving), kernels.bytes);
            binary->place = std::move(place);
            kernels.arriving.erase(reply.ring.get());
            return worker_of(*reply.ring)
                .post([this, s = s.shared_from_this(), binary, options, reply]() mutable {
                    const aclrtBinaryLoadOptions all{options.data(), uint32_t(options.size()), 0};
                    const int32_t e = Vendor::call(
                        vendor_.aclrtBinaryLoadFromData, static_cast<const void*>(binary->bytes.data()),
                        binary->bytes.size(), options.empty() ? nullptr : &all, &binary->handle);
                    Failure failure = e ? failed(vendor_, "aclrtBinaryLoadFromData", e) : Failure{};
                    post([this, s, binary, failure, reply]() mutable {
                        if (s->removed) return;
                        const uint64_t handle = failure.code ? 0 : s->kernels->binaries.add(binary);
                        if (handle) return reply.ok(handle);
                        failures_.count_vendor_error();
                        reply.fail(failure);
                    });
                });
        }
        case Call::unload: {
            if (!rest.empty()) return bad();
            std::shared_ptr<Binary> binary = kernels.binaries.remove(k.handle);
            if (!binary)
                return refuse(s, reply, acl::RT_INVALID_HANDLE,
                              "aclrtBinaryUnLoad: " + hex(k.handle) + " is not a binary");
            for (const auto& [name, function] : binary->functions) kernels.functions.remove(function);
            // The device may still run it: it goes when what the program has launched is over; if that takes
            // too long, with the session.
            return releases_.when_unused(
                s, reply, {},
                [this, s = s.shared_from_this(), binary, reply](bool over, const MemoryMap::Range&) mutable {
                    if (!over) {
                        post([s, binary = std::move(binary)] {
                            if (!s->removed) s->kernels->binaries.add(binary);
                        });
                    }
                    binary.reset();
                    reply.ok();
                });
        }
        case Call::function:
        case Call::function_by_entry: {
            const bool by_name = k.call == Call::function;
            const uint64_t length = by_name ? k.bytes : 0;
            if (length > kernel::kMaxName || rest.size() != wire::round8(length)) return bad();
            std::shared_ptr<Binary> binary = kernels.binaries.share(k.handle);
            const char* const asked = by_name ? "aclrtBinaryGetFunction" : "aclrtBinaryGetFunctionByEntry";
            if (!binary)
                return refuse(s, reply, acl::RT_INVALID_HANDLE,
                              std::string(asked) + ": " + hex(k.handle) + " is not a binary");
            const std::string name =
                by_name ? std::string(reinterpret_cast<const char*>(rest.data()),
                                      strnlen(reinterpret_cast<const char*>(rest.data()), length))
                        : std::string(1, '\0') + std::to_string(k.bytes);
            if (auto known = binary->functions.find(name); known != binary->functions.end())
                return reply.ok(known->second);
            if (kernels.functions.size() >= kMaxFunctions)
                return refuse(s, reply, acl::RT_MEMORY_ALLOCATION,
                              std::string(asked) + ": too many functions");
            return worker_of(*reply.ring)
                .post([this, s = s.shared_from_this(), binary, name, by_name, entry = k.bytes, asked, reply] {
                    auto function = std::make_shared<Function>();
                    function->binary = binary;
                    const int32_t e = by_name ? Vendor::call(vendor_.aclrtBinaryGetFunction, binary->handle,
                                                             name.c_str(), &function->handle)
                                              : Vendor::call(vendor_.aclrtBinaryGetFunctionByEntry,
                                                             binary->handle, entry, &function->handle);
                    const Failure failure = e ? failed(vendor_, asked, e) : Failure{};
                    post([this, s, function, name, asked, failure, reply] {
                        if (s->removed) return;
                        if (failure.code) return reply.fail(failure);
                        // Another thread may have unloaded the binary, or asked for the same, meanwhile.
                        Binary& binary = *function->binary;
                        if (auto known = binary.functions.find(name); known != binary.functions.end())
                            return reply.ok(known->second);
                        bool loaded = false;
                        s->kernels->binaries.each(
                            [&](const auto& b) { loaded = loaded || b == function->binary; });
                        function->serial = next_function_++;
                        const uint64_t handle = loaded ? s->kernels->functions.add(function) : 0;
                        if (!handle)
                            return refuse(*s, reply, acl::RT_INVALID_HANDLE,
                                          std::string(asked) + ": the binary has been unloaded");
                        binary.functions[name] = handle;
                        reply.ok(handle);
                    });
                });
        }
        case Call::function_address: {
            if (!rest.empty()) return bad();
            Function* function = kernels.functions.find(k.handle);
            if (!function)
                return refuse(s, reply, acl::RT_INVALID_HANDLE,
                              "aclrtGetFunctionAddr: " + hex(k.handle) + " is not a function");
            void *cube = nullptr, *vector = nullptr;
            if (int32_t e = Vendor::call(vendor_.aclrtGetFunctionAddr, function->handle, &cube, &vector))
                return reply.fail(failed(vendor_, "aclrtGetFunctionAddr", e));
            return reply.ok(reinterpret_cast<uint64_t>(cube), reinterpret_cast<uint64_t>(vector));
        }
        case Call::sync_address: {
            if (!rest.empty()) return bad();
            void* address = nullptr;
            if (int32_t e = Vendor::call(vendor_.aclrtGetHardwareSyncAddr, &address))
                return reply.fail(failed(vendor_, "aclrtGetHardwareSyncAddr", e));
            return reply.ok(reinterpret_cast<uint64_t>(address));
        }
        default: return bad();
    }
}

void KernelRecords::launch(Session& s, Payload p) {
    wire::LaunchKernel l;
    Payload rest;
    const auto bad = [&] { malformed(s); };
    if (!take(p, &l, &rest) || l.attributes > kernel::kMaxAttributes ||
        l.place_holders > kernel::kMaxPlaceHolders || l.bytes > kernel::kMaxArgumentBytes)
        return bad();
    const uint64_t inline_bytes = l.arguments ? 0 : l.bytes;
    const uint64_t tables =
        l.attributes * sizeof(aclrtLaunchKernelAttr) + l.place_holders * sizeof(aclrtPlaceHolderInfo);
    if (rest.size() != wire::round8(tables + inline_bytes)) return bad();
    Lane* lane = lane_of(s, l.stream);
    if (!lane) return refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    const std::shared_ptr<Function> function = s.kernels ? s.kernels->functions.share(l.function) : nullptr;
    if (!function)
        return refuse_later(s, lane, acl::RT_INVALID_HANDLE,
                            allowed_ ? "aclrtLaunchKernel: " + hex(l.function) + " is not a function"
                                     : std::string(kForbidden));
    auto launch = std::make_shared<KernelLaunch>();
    launch->function = function;
    launch->blocks = l.blocks;
    launch->device_arguments = l.arguments;
    launch->bytes = l.bytes;
    launch->attributes = read<aclrtLaunchKernelAttr>(rest, l.attributes);
    launch->place_holders = read<aclrtPlaceHolderInfo>(rest, l.place_holders);
    launch->arguments.resize(wire::round8(inline_bytes) / 8);
    if (inline_bytes) std::memcpy(launch->arguments.data(), rest.data(), inline_bytes);
    for (const aclrtLaunchKernelAttr& a : launch->attributes) {
        if (a.id < kernel::SCHEDULE_MODE || a.id > kernel::TIMEOUT_US || a.id == kernel::DATA_DUMP) {
            return refuse_later(
                s, lane, acl::API_NOT_SUPPORTED,
                "aclrtLaunchKernel: FlexNPU does not interpose launch attribute " + std::to_string(a.id));
        }
    }
    for (const aclrtPlaceHolderInfo& h : launch->place_holders) {
        if (l.arguments || uint64_t(h.address) + sizeof(uint64_t) > l.bytes || h.data >= l.bytes) {
            return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                                "aclrtLaunchKernel: a place holder is not in the arguments");
        }
    }
    if (l.arguments && !s.memory.holds(l.arguments, l.bytes)) {
        return refuse_later(
            s, lane, acl::RT_PARAM_INVALID,
            "aclrtLaunchKernel: the arguments at " + hex(l.arguments) + " are not in memory of this process");
    }
    if (Footprint* f = footprint_of(*lane)) {
        if (l.arguments) f->add(s.memory, l.arguments, l.bytes);
        lane->graph()->binaries.insert(function->binary);
    }
    auto item = std::make_unique<Item>(KernelItem{});
    KernelItem& made = item->as<KernelItem>();
    made.blocks = l.blocks;
    made.function = function;
    made.call = [this, launch, stream = lane->stream] {
        KernelLaunch& k = *launch;
        aclrtLaunchKernelCfg configured{k.attributes.data(), uint32_t(k.attributes.size()), 0};
        aclrtLaunchKernelCfg* config = k.attributes.empty() ? nullptr : &configured;
        const void* at = reinterpret_cast<const void*>(k.device_arguments);
        if (k.device_arguments && !config)
            return Vendor::call(vendor_.aclrtLaunchKernel, k.function->handle, k.blocks, at, k.bytes, stream);
        if (k.device_arguments)
            return Vendor::call(vendor_.aclrtLaunchKernelV2, k.function->handle, k.blocks, at, k.bytes,
                                config, stream);
        return Vendor::call(vendor_.aclrtLaunchKernelWithHostArgs, k.function->handle, k.blocks, stream,
                            config, static_cast<void*>(k.arguments.data()), k.bytes,
                            k.place_holders.empty() ? nullptr : k.place_holders.data(),
                            k.place_holders.size());
    };
    push(*lane, std::move(item));
}

}  // namespace flexnpu::daemon
