// The exported functions of libhccl. They check what they are given, and queue tasks.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/communicator.hpp"
#include "flexnpu/emulator/hccl/reduce.hpp"
#include "flexnpu/emulator/hccl/rendezvous.hpp"
#include "flexnpu/emulator/hccl/task.hpp"
#include "flexnpu/emulator/runtime/handles.hpp"

namespace emu = flexnpu::emulator;
namespace acl = flexnpu::acl;
namespace types = flexnpu::hccl;
using emu::hccl::Communicator;
using emu::hccl::Message;
using emu::hccl::Op;
using emu::hccl::Part;
using emu::hccl::Token;

namespace {

constexpr char kRootMagic[] = "flexnpu-root-1";
// Elements in one call: their bytes, over all ranks, stay far below 2^64.
constexpr uint64_t kMostElements = uint64_t(1) << 44;

// Never destroyed: threads of the program may call until it is gone.
emu::HandleTable<Communicator>& communicators() {
    static auto* table = new emu::HandleTable<Communicator>(emu::HandleKind(7));
    return *table;
}

template <class... Args>
int32_t refuse(int32_t result, const char* format, Args... args) {
    flexnpu_emu_fail(result == types::E_NOT_SUPPORT ? acl::API_NOT_SUPPORTED : acl::INVALID_PARAM, format,
                     args...);
    return result;
}

// Why nothing may come out of an exported function but its result.
template <class F>
int32_t guarded(const char* function, F f) {
    try {
        return f();
    } catch (const Communicator::Refusal& refusal) {
        return refuse(refusal.result, "%s: %s", function, refusal.text.c_str());
    } catch (const std::exception& error) {
        return refuse(types::E_INTERNAL, "%s: %s", function, error.what());
    }
}

std::shared_ptr<Communicator> find(const char* function, HcclComm handle, int32_t* result) {
    auto comm = communicators().get(handle);
    if (!comm) {
        *result = refuse(handle == nullptr ? types::E_PTR : types::E_PARA, "%s: %p is not a communicator",
                         function, handle);
    }
    return comm;
}

int32_t ask(const char* function, HcclComm handle, const uint32_t Communicator::* what, uint32_t* out) {
    int32_t result = types::SUCCESS;
    auto comm = find(function, handle, &result);
    if (comm && out == nullptr) {
        return refuse(types::E_PTR, "%s: the output is null", function);
    }
    if (comm) {
        *out = (*comm).*what;
    }
    return result;
}

// ---- making communicators ----

struct Options {
    std::string name;
    int64_t execute_timeout_s = -1;
};

int32_t read_config(const char* function, const HcclCommConfig* config, Options* options) {
    if (config == nullptr) {
        return types::SUCCESS;
    }
    const types::ConfigHead& head = config->head;
    if (head.magic != types::kConfigMagic || head.size < 32 || head.size > types::kLargestConfig) {
        return refuse(types::E_PARA, "%s: the configuration was not initialised", function);
    }
    if (head.size >= sizeof(head)) {
        options->name.assign(head.name, strnlen(head.name, sizeof(head.name)));
    }
    if (head.version >= types::kExecTimeoutVersion && head.size >= types::kExecTimeoutOffset + 4) {
        int32_t seconds = -1;
        std::memcpy(&seconds, reinterpret_cast<const char*>(config) + types::kExecTimeoutOffset,
                    sizeof(seconds));
        options->execute_timeout_s = seconds;
    }
    return types::SUCCESS;
}

std::string default_name(const Token& token) {
    std::string name = "hccl-";
    for (int i = 0; i < 8; ++i) {
        constexpr char kDigits[] = "0123456789abcdef";
        name += kDigits[token.bytes[i] >> 4];
        name += kDigits[token.bytes[i] & 15];
    }
    return name;
}

int32_t publish(const char* function, std::shared_ptr<Communicator> made, HcclComm* out) {
    *out = communicators().add(std::move(made));
    return *out != nullptr ? int32_t(types::SUCCESS)
                           : refuse(types::E_MEMORY, "%s: too many communicators", function);
}

int32_t check_size(const char* function, uint32_t ranks, uint32_t rank) {
    if (ranks == 0 || ranks > emu::hccl::kMaxRanks) {
        return refuse(types::E_PARA, "%s: %u ranks; the emulated machine has at most %u", function, ranks,
                      emu::hccl::kMaxRanks);
    }
    if (rank >= ranks) {
        return refuse(types::E_PARA, "%s: rank %u of %u", function, rank, ranks);
    }
    return types::SUCCESS;
}

int32_t root_info(const char* function, HcclRootInfo* out) {
    if (out == nullptr) {
        return refuse(types::E_PTR, "%s: the output is null", function);
    }
    return guarded(function, [&] {
        const Token token = emu::hccl::open_rendezvous(0);
        std::memset(out, 0, sizeof(*out));
        std::memcpy(out->internal, kRootMagic, sizeof(kRootMagic));
        std::memcpy(out->internal + sizeof(kRootMagic), token.bytes, sizeof(token.bytes));
        return int32_t(types::SUCCESS);
    });
}

int32_t init(const char* function, uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
             const HcclCommConfig* config, HcclComm* out) {
    if (root == nullptr || out == nullptr) {
        return refuse(types::E_PTR, "%s: an argument is null", function);
    }
    Options options;
    if (int32_t result = check_size(function, ranks, rank)) {
        return result;
    }
    if (int32_t result = read_config(function, config, &options)) {
        return result;
    }
    if (std::memcmp(root->internal, kRootMagic, sizeof(kRootMagic)) != 0) {
        return refuse(types::E_PARA, "%s: the root info is not one of HcclGetRootInfo", function);
    }
    int32_t device = 0;
    if (aclrtGetDevice(&device) != 0) {
        return refuse(types::E_RUNTIME, "%s: this thread has no device: call aclrtSetDevice first", function);
    }
    return guarded(function, [&] {
        Token token;
        std::memcpy(token.bytes, root->internal + sizeof(kRootMagic), sizeof(token.bytes));
        const std::string name = options.name.empty() ? default_name(token) : options.name;
        return publish(function,
                       std::make_shared<Communicator>(emu::hccl::join_rendezvous(token), ranks, rank, device,
                                                      name.c_str(), options.execute_timeout_s),
                       out);
    });
}

// ---- queueing ----

// What is queued between HcclGroupStart and HcclGroupEnd by this thread.
struct Group {
    int depth = 0;
    struct Entry {
        std::shared_ptr<Communicator> comm;
        aclrtStream stream;
        std::unique_ptr<emu::hccl::Task> task;  // or:
        std::vector<Message> messages;
    };
    std::vector<Entry> entries;
};
thread_local Group t_group;

int32_t queue_task(std::unique_ptr<emu::hccl::Task> task, aclrtStream stream) {
    if (t_group.depth > 0) {
        t_group.entries.push_back({nullptr, stream, std::move(task), {}});
        return types::SUCCESS;
    }
    return emu::hccl::Task::launch(std::move(task), stream);
}

int32_t queue_messages(std::shared_ptr<Communicator> comm, std::vector<Message> messages,
                       aclrtStream stream) {
    if (t_group.depth == 0) {
        return emu::hccl::Task::launch(emu::hccl::make_batch(std::move(comm), std::move(messages)), stream);
    }
    for (Group::Entry& entry : t_group.entries) {
        if (entry.comm == comm && entry.stream == stream) {
            entry.messages.insert(entry.messages.end(), messages.begin(), messages.end());
            return types::SUCCESS;
        }
    }
    t_group.entries.push_back({std::move(comm), stream, nullptr, std::move(messages)});
    return types::SUCCESS;
}

// The arguments of one call, checked one after the other; the first that is wrong is told.
class Check {
public:
    Check(const char* function, HcclComm handle) : function_(function) {
        comm_ = find(function, handle, &result_);
    }

    Check& type(int32_t dtype, uint64_t count) {
        if (result_ == 0 && types::element_size(dtype) == 0) {
            result_ = refuse(types::E_PARA, "%s: %d is not a data type", function_, dtype);
        }
        if (result_ == 0 && count > kMostElements) {
            result_ =
                refuse(types::E_PARA, "%s: %llu elements", function_, static_cast<unsigned long long>(count));
        }
        return *this;
    }
    Check& reduction(int32_t dtype, int32_t op) {
        if (result_ == 0 && (op < types::SUM || op > types::MIN)) {
            result_ = refuse(types::E_PARA, "%s: %d is not a reduction", function_, op);
        }
        if (result_ == 0 && !emu::hccl::can_reduce(dtype)) {
            result_ = refuse(types::E_NOT_SUPPORT, "%s: data type %d cannot be reduced", function_, dtype);
        }
        return *this;
    }
    Check& rank(uint32_t rank) {
        if (result_ == 0 && rank >= comm_->ranks) {
            result_ = refuse(types::E_PARA, "%s: rank %u of %u", function_, rank, comm_->ranks);
        }
        return *this;
    }
    Check& memory(const void* p, uint64_t bytes) {
        if (result_ == 0 && bytes != 0 && flexnpu_emu_is_device_range(p, bytes) == 0) {
            result_ =
                refuse(p == nullptr ? types::E_PTR : types::E_PARA, "%s: %p..+%llu is not device memory",
                       function_, p, static_cast<unsigned long long>(bytes));
        }
        return *this;
    }
    Check& given(const void* p) {
        if (result_ == 0 && p == nullptr) {
            result_ = refuse(types::E_PTR, "%s: an argument is null", function_);
        }
        return *this;
    }

    // One piece a rank, from counts and displacements in elements.
    Check& pieces(const void* counts, const void* displacements, int32_t dtype,
                  std::vector<Part::Piece>* out) {
        given(counts).given(displacements);
        for (uint32_t r = 0; result_ == 0 && r < ranks(); ++r) {
            uint64_t count = 0, displacement = 0;
            std::memcpy(&count, static_cast<const char*>(counts) + r * 8, 8);
            std::memcpy(&displacement, static_cast<const char*>(displacements) + r * 8, 8);
            if (count > kMostElements || displacement > kMostElements) {
                result_ = refuse(types::E_PARA, "%s: a count is too large", function_);
                break;
            }
            out->push_back({displacement * types::element_size(dtype), count * types::element_size(dtype)});
        }
        return *this;
    }

    int32_t result() const { return result_; }
    const std::shared_ptr<Communicator>& comm() const { return comm_; }
    uint32_t ranks() const { return comm_->ranks; }

private:
    const char* function_;
    int32_t result_ = types::SUCCESS;
    std::shared_ptr<Communicator> comm_;
};

int32_t queue(Check& check, Op op, Part part, aclrtStream stream) {
    return queue_task(emu::hccl::make_collective(check.comm(), op, std::move(part)), stream);
}

uint64_t end_of(const std::vector<Part::Piece>& pieces) {
    uint64_t end = 0;
    for (const Part::Piece& p : pieces) {
        end = p.bytes != 0 ? std::max(end, p.offset + p.bytes) : end;
    }
    return end;
}

std::vector<Part::Piece> even(uint32_t ranks, uint64_t bytes) {
    std::vector<Part::Piece> out;
    for (uint32_t r = 0; r < ranks; ++r) {
        out.push_back({r * bytes, bytes});
    }
    return out;
}

int32_t all_to_all(Check& check, const void* send, const void* recv, std::vector<Part::Piece> out,
                   std::vector<Part::Piece> in, aclrtStream stream) {
    if (check.memory(send, end_of(out)).memory(recv, end_of(in)).result()) {
        return check.result();
    }
    Part part;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(const_cast<void*>(recv));
    part.out = std::move(out);
    part.in = std::move(in);
    return queue(check, Op::AllToAll, std::move(part), stream);
}

// This rank's `bytes` to all; theirs as `in` says. `count`: of each rank, where all have as many elements.
int32_t all_gather(Check& check, const void* send, uint64_t bytes, void* recv, std::vector<Part::Piece> in,
                   int32_t dtype, uint64_t count, aclrtStream stream) {
    if (check.memory(send, bytes).memory(recv, end_of(in)).result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.out.push_back({0, bytes});
    part.in = std::move(in);
    return queue(check, Op::AllGather, std::move(part), stream);
}

// The other way round: this rank gets `bytes`, reduced over what all have for it.
int32_t reduce_scatter(Check& check, const void* send, std::vector<Part::Piece> out, void* recv,
                       uint64_t bytes, int32_t dtype, int32_t how, uint64_t count, aclrtStream stream) {
    if (check.memory(recv, bytes).memory(send, end_of(out)).result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.reduce = how;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.out = std::move(out);
    part.in.assign(check.ranks(), {0, bytes});
    return queue(check, Op::ReduceScatter, std::move(part), stream);
}

int32_t reduction(const char* function, Op op, void* send, void* recv, uint64_t count, int32_t dtype,
                  int32_t how, uint32_t root, HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(dtype);
    Check check(function, handle);
    if (check.type(dtype, count).reduction(dtype, how).rank(root).memory(send, bytes).result()) {
        return check.result();
    }
    if (op == Op::AllReduce || root == check.comm()->rank) {
        check.memory(recv, bytes);
    }
    if (check.result()) {
        return check.result();
    }
    Part part;
    part.dtype = dtype;
    part.reduce = how;
    part.root = root;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    return queue(check, op, std::move(part), stream);
}

int32_t message(const char* function, bool send, void* buffer, uint64_t count, int32_t dtype, uint32_t peer,
                HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(dtype);
    Check check(function, handle);
    if (check.type(dtype, count).rank(peer).memory(buffer, bytes).result()) {
        return check.result();
    }
    return queue_messages(check.comm(), {{send, peer, static_cast<char*>(buffer), bytes}}, stream);
}

}  // namespace

extern "C" {

int32_t HcclGetRootInfo(HcclRootInfo* out) { return root_info("HcclGetRootInfo", out); }
int32_t HcclGetRootInfoScalable(HcclRootInfo* out) { return root_info("HcclGetRootInfoScalable", out); }

int32_t HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo* root, uint32_t rank, HcclComm* out) {
    return init("HcclCommInitRootInfo", ranks, root, rank, nullptr, out);
}
int32_t HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                                   const HcclCommConfig* config, HcclComm* out) {
    return init("HcclCommInitRootInfoConfig", ranks, root, rank, config, out);
}
// Several roots only spread the work of meeting; on one machine the first does it.
int32_t HcclCommInitRootInfoScalable(uint32_t ranks, uint32_t roots, const HcclRootInfo* list, uint32_t rank,
                                     uint32_t, const HcclCommConfig* config, HcclComm* out) {
    if (roots == 0) {
        return refuse(types::E_PARA, "HcclCommInitRootInfoScalable: no root");
    }
    return init("HcclCommInitRootInfoScalable", ranks, list, rank, config, out);
}

int32_t HcclCommInitAll(uint32_t count, int32_t* devices, HcclComm* out) {
    constexpr char kName[] = "HcclCommInitAll";
    if (devices == nullptr || out == nullptr) {
        return refuse(types::E_PTR, "%s: an argument is null", kName);
    }
    if (int32_t result = check_size(kName, count, 0)) {
        return result;
    }
    uint32_t there = 0;
    aclrtGetDeviceCount(&there);
    for (uint32_t i = 0; i < count; ++i) {
        if (devices[i] < 0 || uint32_t(devices[i]) >= there) {
            return refuse(types::E_PARA, "%s: there is no device %d", kName, devices[i]);
        }
    }
    return guarded(kName, [&] {
        // Each of them waits for the others, so each has a thread while it does.
        const Token token = emu::hccl::open_rendezvous(count);
        const std::string name = default_name(token);
        std::vector<std::shared_ptr<Communicator>> made(count);
        std::vector<Communicator::Refusal> refusals(count, {types::SUCCESS, ""});
        std::vector<std::thread> threads;
        for (uint32_t i = 0; i < count; ++i) {
            threads.emplace_back([&, i] {
                try {
                    made[i] = std::make_shared<Communicator>(emu::hccl::join_rendezvous(token), count, i,
                                                             devices[i], name.c_str(), -1);
                } catch (const Communicator::Refusal& refusal) {
                    refusals[i] = refusal;
                } catch (const std::exception& error) {
                    refusals[i] = {types::E_INTERNAL, error.what()};
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        for (const auto& refusal : refusals) {
            if (refusal.result != types::SUCCESS) {
                throw refusal;
            }
        }
        for (uint32_t i = 0; i < count; ++i) {
            if (int32_t result = publish(kName, made[i], &out[i])) {
                return result;
            }
        }
        return int32_t(types::SUCCESS);
    });
}

int32_t HcclCommInitClusterInfo(const char*, uint32_t, HcclComm*) {
    return refuse(types::E_NOT_SUPPORT,
                  "HcclCommInitClusterInfo: the emulated machine has no rank table; use HcclGetRootInfo");
}
int32_t HcclCommInitClusterInfoConfig(const char*, uint32_t, HcclCommConfig*, HcclComm*) {
    return refuse(
        types::E_NOT_SUPPORT,
        "HcclCommInitClusterInfoConfig: the emulated machine has no rank table; use HcclGetRootInfo");
}

int32_t HcclCreateSubCommConfig(HcclComm* parent, uint32_t count, uint32_t* members, uint64_t id,
                                uint32_t rank, HcclCommConfig* config, HcclComm* out) {
    constexpr char kName[] = "HcclCreateSubCommConfig";
    if (parent == nullptr || out == nullptr) {
        return refuse(types::E_PTR, "%s: an argument is null", kName);
    }
    int32_t result = types::SUCCESS;
    auto comm = find(kName, *parent, &result);
    if (!comm) {
        return result;
    }
    if (members == nullptr) {  // a rank that is not in it
        *out = nullptr;
        return types::SUCCESS;
    }
    Options options;
    if ((result = check_size(kName, count, rank)) || (result = read_config(kName, config, &options))) {
        return result;
    }
    if (members[rank] != comm->rank) {
        return refuse(types::E_PARA, "%s: rank %u of the sub-communicator is rank %u, not this one (%u)",
                      kName, rank, members[rank], comm->rank);
    }
    return guarded(kName, [&] {
        emu::hccl::Offer* offer = nullptr;
        std::string name = options.name.empty() ? comm->name() + "-" + std::to_string(id) : options.name;
        std::shared_ptr<Communicator> made;
        try {
            const int fd = comm->share(id, members, count, rank, &offer);
            made = std::make_shared<Communicator>(fd, count, rank, comm->device, name.c_str(),
                                                  options.execute_timeout_s);
        } catch (...) {
            Communicator::take_back(offer);
            throw;
        }
        Communicator::take_back(offer);
        return publish(kName, made, out);
    });
}

int32_t HcclCommDestroy(HcclComm handle) {
    auto comm = communicators().remove(handle);
    if (!comm) {
        return refuse(handle == nullptr ? types::E_PTR : types::E_PARA,
                      "HcclCommDestroy: %p is not a communicator", handle);
    }
    comm->drain();
    return types::SUCCESS;
}

int32_t HcclCommResume(HcclComm handle) {
    int32_t result = types::SUCCESS;
    auto comm = find("HcclCommResume", handle, &result);
    if (!comm) {
        return result;
    }
    return comm->resume() ? int32_t(types::SUCCESS)
                          : refuse(types::E_TIMEOUT,
                                   "HcclCommResume: not all ranks resumed within HCCL_CONNECT_TIMEOUT");
}

int32_t HcclGetCommName(HcclComm handle, char* name) {
    int32_t result = types::SUCCESS;
    auto comm = find("HcclGetCommName", handle, &result);
    if (!comm) {
        return result;
    }
    if (name == nullptr) {
        return refuse(types::E_PTR, "HcclGetCommName: the output is null");
    }
    const std::string text = comm->name();
    std::memcpy(name, text.c_str(), text.size() + 1);
    return types::SUCCESS;
}

int32_t HcclGetRankSize(HcclComm handle, uint32_t* ranks) {
    return ask("HcclGetRankSize", handle, &Communicator::ranks, ranks);
}
int32_t HcclGetRankId(HcclComm handle, uint32_t* rank) {
    return ask("HcclGetRankId", handle, &Communicator::rank, rank);
}

int32_t HcclGetCommAsyncError(HcclComm handle, int32_t* error) {
    int32_t result = types::SUCCESS;
    auto comm = find("HcclGetCommAsyncError", handle, &result);
    if (!comm) {
        return result;
    }
    if (error == nullptr) {
        return refuse(types::E_PTR, "HcclGetCommAsyncError: the output is null");
    }
    comm->lost(comm->everybody());
    *error = comm->error();
    return types::SUCCESS;
}

const char* HcclGetErrorString(int32_t result) {
    switch (result) {
        case types::SUCCESS: return "no error";
        case types::E_PARA: return "a wrong argument";
        case types::E_PTR: return "a null pointer";
        case types::E_MEMORY: return "out of memory";
        case types::E_INTERNAL: return "an internal error";
        case types::E_NOT_SUPPORT: return "not supported";
        case types::E_NOT_FOUND: return "not found";
        case types::E_UNAVAIL: return "a resource is not available";
        case types::E_SYSCALL: return "a system call failed";
        case types::E_TIMEOUT: return "timed out";
        case types::E_TCP_CONNECT: return "cannot reach another rank";
        case types::E_RUNTIME: return "a call of the runtime failed";
        case types::E_REMOTE: return "another rank failed";
        default: return "an unknown error";
    }
}

uint32_t HcclGetCommConfigCapability() { return types::kCapabilities; }

// Reductions are deterministic, asked for or not.
static std::atomic<int32_t> g_deterministic{0};

int32_t HcclSetConfig(HcclConfig config, HcclConfigValue value) {
    if (config != types::DETERMINISTIC) {
        return refuse(types::E_PARA, "HcclSetConfig: %d is not a setting", config);
    }
    g_deterministic = value;
    return types::SUCCESS;
}
int32_t HcclGetConfig(HcclConfig config, HcclConfigValue* value) {
    if (config != types::DETERMINISTIC || value == nullptr) {
        return refuse(types::E_PARA, "HcclGetConfig: %d is not a setting, or the output is null", config);
    }
    *value = g_deterministic;
    return types::SUCCESS;
}

// ---- collectives ----

int32_t HcclAllReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                      HcclComm comm, aclrtStream stream) {
    return reduction("HcclAllReduce", Op::AllReduce, send, recv, count, type, op, 0, comm, stream);
}
int32_t HcclReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root,
                   HcclComm comm, aclrtStream stream) {
    return reduction("HcclReduce", Op::Reduce, send, recv, count, type, op, root, comm, stream);
}

int32_t HcclBarrier(HcclComm handle, aclrtStream stream) {
    Check check("HcclBarrier", handle);
    return check.result() ? check.result() : queue(check, Op::Barrier, {}, stream);
}

int32_t HcclBroadcast(void* buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm handle,
                      aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclBroadcast", handle);
    if (check.type(type, count).rank(root).memory(buffer, bytes).result()) {
        return check.result();
    }
    Part part;
    part.dtype = type;
    part.root = root;
    part.count = count;
    part.send = part.recv = static_cast<char*>(buffer);
    part.in.resize(check.ranks());
    part.in[root].bytes = bytes;
    if (root == check.comm()->rank) {
        part.out.push_back({0, bytes});
    }
    return queue(check, Op::Broadcast, std::move(part), stream);
}

int32_t HcclAllGather(void* send, void* recv, uint64_t count, HcclDataType type, HcclComm handle,
                      aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclAllGather", handle);
    if (check.type(type, count).result()) {
        return check.result();
    }
    return all_gather(check, send, bytes, recv, even(check.ranks(), bytes), type, count, stream);
}

int32_t HcclAllGatherV(void* send, uint64_t count, void* recv, const void* counts, const void* displacements,
                       HcclDataType type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAllGatherV", handle);
    std::vector<Part::Piece> in;
    if (check.type(type, count).pieces(counts, displacements, type, &in).result()) {
        return check.result();
    }
    return all_gather(check, send, count * types::element_size(type), recv, std::move(in), type, 0, stream);
}

int32_t HcclReduceScatter(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                          HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclReduceScatter", handle);
    if (check.type(type, count).reduction(type, op).result()) {
        return check.result();
    }
    return reduce_scatter(check, send, even(check.ranks(), bytes), recv, bytes, type, op, count, stream);
}

int32_t HcclReduceScatterV(void* send, const void* counts, const void* displacements, void* recv,
                           uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm handle,
                           aclrtStream stream) {
    Check check("HcclReduceScatterV", handle);
    std::vector<Part::Piece> out;
    if (check.type(type, count).reduction(type, op).pieces(counts, displacements, type, &out).result()) {
        return check.result();
    }
    return reduce_scatter(check, send, std::move(out), recv, count * types::element_size(type), type, op, 0,
                          stream);
}

int32_t HcclScatter(void* send, void* recv, uint64_t count, HcclDataType type, uint32_t root, HcclComm handle,
                    aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(type);
    Check check("HcclScatter", handle);
    if (check.type(type, count).rank(root).memory(recv, bytes).result()) {
        return check.result();
    }
    Part part;
    part.dtype = type;
    part.root = root;
    part.count = count;
    part.send = static_cast<const char*>(send);
    part.recv = static_cast<char*>(recv);
    part.in.resize(check.ranks());
    part.in[root].bytes = bytes;
    if (root == check.comm()->rank) {
        part.out = even(check.ranks(), bytes);
        if (check.memory(send, bytes * check.ranks()).result()) {
            return check.result();
        }
    }
    return queue(check, Op::Scatter, std::move(part), stream);
}

int32_t HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* recv,
                     uint64_t recv_count, HcclDataType recv_type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAlltoAll", handle);
    if (check.type(send_type, send_count).type(recv_type, recv_count).result()) {
        return check.result();
    }
    return all_to_all(check, send, recv, even(check.ranks(), send_count * types::element_size(send_type)),
                      even(check.ranks(), recv_count * types::element_size(recv_type)), stream);
}

int32_t HcclAlltoAllV(const void* send, const void* send_counts, const void* send_displacements,
                      HcclDataType send_type, const void* recv, const void* recv_counts,
                      const void* recv_displacements, HcclDataType recv_type, HcclComm handle,
                      aclrtStream stream) {
    Check check("HcclAlltoAllV", handle);
    std::vector<Part::Piece> out, in;
    if (check.type(send_type, 0)
            .type(recv_type, 0)
            .pieces(send_counts, send_displacements, send_type, &out)
            .pieces(recv_counts, recv_displacements, recv_type, &in)
            .result()) {
        return check.result();
    }
    return all_to_all(check, send, recv, std::move(out), std::move(in), stream);
}

// The matrix says how many elements each rank (row) sends to each (column); pieces lie one after the other.
int32_t HcclAlltoAllVC(const void* send, const void* matrix, HcclDataType send_type, const void* recv,
                       HcclDataType recv_type, HcclComm handle, aclrtStream stream) {
    Check check("HcclAlltoAllVC", handle);
    if (check.type(send_type, 0).type(recv_type, 0).given(matrix).result()) {
        return check.result();
    }
    const uint32_t n = check.ranks(), me = check.comm()->rank;
    std::vector<Part::Piece> out, in;
    uint64_t out_end = 0, in_end = 0;
    auto count_of = [&](uint32_t from, uint32_t to) {
        uint64_t count = 0;
        std::memcpy(&count, static_cast<const char*>(matrix) + (uint64_t(from) * n + to) * 8, 8);
        return count;
    };
    for (uint32_t r = 0; r < n; ++r) {
        if (count_of(me, r) > kMostElements || count_of(r, me) > kMostElements) {
            return refuse(types::E_PARA, "HcclAlltoAllVC: a count is too large");
        }
        out.push_back({out_end, count_of(me, r) * types::element_size(send_type)});
        in.push_back({in_end, count_of(r, me) * types::element_size(recv_type)});
        out_end += out.back().bytes;
        in_end += in.back().bytes;
    }
    return all_to_all(check, send, recv, std::move(out), std::move(in), stream);
}

// ---- messages ----

int32_t HcclSend(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclSend", true, buffer, count, type, peer, comm, stream);
}
int32_t HcclRecv(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclRecv", false, buffer, count, type, peer, comm, stream);
}

int32_t HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm handle, aclrtStream stream) {
    Check check("HcclBatchSendRecv", handle);
    if (check.given(count != 0 ? items : reinterpret_cast<HcclSendRecvItem*>(1)).result()) {
        return check.result();
    }
    std::vector<Message> messages;
    for (uint32_t i = 0; i < count; ++i) {
        const HcclSendRecvItem& item = items[i];
        const uint64_t bytes = item.count * types::element_size(item.data_type);
        if (item.type != types::SEND && item.type != types::RECV) {
            return refuse(types::E_PARA, "HcclBatchSendRecv: item %u is neither a send nor a receive", i);
        }
        if (check.type(item.data_type, item.count).rank(item.peer).memory(item.buffer, bytes).result()) {
            return check.result();
        }
        messages.push_back({item.type == types::SEND, item.peer, static_cast<char*>(item.buffer), bytes});
    }
    return queue_messages(check.comm(), std::move(messages), stream);
}

int32_t HcclGroupStart() {
    ++t_group.depth;
    return types::SUCCESS;
}

int32_t HcclGroupEnd() {
    if (t_group.depth == 0) {
        return refuse(types::E_PARA, "HcclGroupEnd without HcclGroupStart");
    }
    if (--t_group.depth > 0) {
        return types::SUCCESS;
    }
    int32_t result = types::SUCCESS;
    for (Group::Entry& entry : std::exchange(t_group.entries, {})) {
        auto task =
            entry.task ? std::move(entry.task) : emu::hccl::make_batch(entry.comm, std::move(entry.messages));
        const int32_t one = emu::hccl::Task::launch(std::move(task), entry.stream);
        result = result ? result : one;
    }
    return result;
}
}
