// The functions of libhccl that make communicators, ask of them and end them.
#include <atomic>
#include <cstring>
#include <exception>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "flexnpu/emulator/hccl/call.hpp"
#include "flexnpu/emulator/hccl/rendezvous.hpp"

using namespace flexnpu::emulator::hccl;
namespace types = flexnpu::hccl;

namespace {

constexpr char kRootMagic[] = "flexnpu-root-1";

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
    if (ranks == 0 || ranks > kMaxRanks) {
        return refuse(types::E_PARA, "%s: %u ranks; the emulated machine has at most %u", function, ranks,
                      kMaxRanks);
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
        const Token token = open_rendezvous(0);
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
                       std::make_shared<Communicator>(join_rendezvous(token), ranks, rank, device,
                                                      name.c_str(), options.execute_timeout_s),
                       out);
    });
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
        const Token token = open_rendezvous(count);
        const std::string name = default_name(token);
        std::vector<std::shared_ptr<Communicator>> made(count);
        std::vector<Refusal> refusals(count, {types::SUCCESS, ""});
        // Each of them waits for the others, so each has a thread while it does. They begin when all are
        // there: if the system gives too few, none waits for one that never comes.
        std::promise<bool> begin;
        const std::shared_future<bool> begins = begin.get_future().share();
        std::vector<std::jthread> threads;
        bool all = true;
        for (uint32_t i = 0; i < count && all; ++i) {
            try {
                threads.emplace_back([&, i] {
                    if (!begins.get()) {
                        return;
                    }
                    try {
                        made[i] = std::make_shared<Communicator>(join_rendezvous(token), count, i, devices[i],
                                                                 name.c_str(), -1);
                    } catch (const Refusal& refusal) {
                        refusals[i] = refusal;
                    } catch (const std::exception& error) {
                        refusals[i] = {types::E_INTERNAL, error.what()};
                    }
                });
            } catch (const std::system_error&) {
                all = false;
            }
        }
        begin.set_value(all);
        threads.clear();
        if (!all) {
            throw Refusal{types::E_MEMORY, "the system gives this process no more threads"};
        }
        for (const auto& refusal : refusals) {
            if (refusal.result != types::SUCCESS) {
                throw Refusal(refusal);
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
        Offer* offer = nullptr;
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
}
