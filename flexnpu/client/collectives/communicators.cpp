// Hccl*: communicators of the daemon's vendor library under the session's numbers.
//
// These functions return an HcclResult.
#include "flexnpu/client/collectives/communicators.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "flexnpu/client/memory/peer.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
namespace hccl = flexnpu::hccl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::KnownCommunicator;
using flexnpu::client::number;
using flexnpu::client::refuse;
using flexnpu::client::Session;
using wire::Kind;

namespace {

// The daemon answers with an HcclResult where the vendor gave one, else with an ACL error.
int32_t as_result(int32_t status) { return status < 100 ? status : int32_t(hccl::E_RUNTIME); }

struct Process {
    std::mutex mutex;
    std::map<uint64_t, KnownCommunicator> communicators;
    int32_t deterministic = -1;  // HcclSetConfig; -1: never called
};
// Never deleted: threads may call until the end.
Process& process() {
    static auto* p = new Process;
    return *p;
}
[[maybe_unused]] const bool process_held = (flexnpu::client::hold_over_fork(process().mutex), true);

// The configuration's bytes with what HcclSetConfig set, which the vendor would keep for its whole process:
// here that is everybody's daemon.
int32_t read_config(const char* function, const HcclCommConfig* config, std::vector<uint8_t>* out) {
    if (config) {
        const hccl::ConfigHead& head = config->head;
        if (head.magic != hccl::kConfigMagic || head.size < 32 || head.size > hccl::kLargestConfig) {
            return refuse(hccl::E_PARA, "%s: the configuration was not initialised", function);
        }
        const auto* bytes = reinterpret_cast<const uint8_t*>(config);
        out->assign(bytes, bytes + head.size);
    }
    int32_t deterministic;
    {
        std::lock_guard lock(process().mutex);
        deterministic = process().deterministic;
    }
    if (deterministic < 0) return 0;
    if (out->empty()) {
        hccl::ConfigHead head{};
        head.size = sizeof(head);
        head.magic = hccl::kConfigMagic;
        head.version = 2;
        head.buffer_mib = hccl::kNotSet;
        head.deterministic = hccl::kNotSet;
        out->resize(sizeof(head));
        std::memcpy(out->data(), &head, sizeof(head));
    }
    constexpr size_t at = offsetof(hccl::ConfigHead, deterministic);
    uint32_t value;
    std::memcpy(&value, out->data() + at, sizeof(value));
    if (value == hccl::kNotSet) std::memcpy(out->data() + at, &deterministic, sizeof(deterministic));
    return 0;
}

int32_t root_info(const char* function, HcclRootInfo* out) {
    if (!out) return refuse(hccl::E_PTR, "%s: the output is null", function);
    Channel* c = Session::channel();
    if (!c) return hccl::E_RUNTIME;
    size_t at = 0;
    while (at < sizeof(*out)) {
        wire::Communicator ask{};
        ask.call = at == 0 ? wire::Communicator::root_info : wire::Communicator::answer_rest;
        ask.id = at;
        if (int32_t e = c->call(Kind::communicator, ask)) return as_result(e);
        const size_t n = std::min(wire::kReplyWords * 8, sizeof(*out) - at);
        std::memcpy(out->internal + at, c->words(), n);
        at += n;
    }
    return 0;
}

// Has a communicator made as `question` says, with what goes before its configuration.
int32_t make(Channel& c, wire::Communicator question, const void* before, size_t before_bytes,
             const std::vector<uint8_t>& config, HcclComm* out) {
    question.config = uint32_t(config.size());
    if (int32_t e = c.call(Kind::communicator, &question, sizeof(question), before, before_bytes,
                           config.data(), config.size()))
        return as_result(e);
    const uint64_t handle = c.words()[0];
    {
        std::lock_guard lock(process().mutex);
        process().communicators[handle] = {question.ranks, question.rank};
    }
    *out = reinterpret_cast<HcclComm>(handle);
    return 0;
}

int32_t initialise(const char* function, uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                   const HcclCommConfig* config, HcclComm* out) {
    if (!root || !out) return refuse(hccl::E_PTR, "%s: an argument is null", function);
    if (ranks == 0 || rank >= ranks) return refuse(hccl::E_PARA, "%s: rank %u of %u", function, rank, ranks);
    std::vector<uint8_t> bytes;
    if (int32_t e = read_config(function, config, &bytes)) return e;
    Channel* c = Session::channel();
    if (!c) return hccl::E_RUNTIME;
    wire::Communicator ask{};
    ask.call = wire::Communicator::initialise;
    ask.ranks = ranks;
    ask.rank = rank;
    return make(*c, ask, root, sizeof(*root), bytes, out);
}

// Asks about one communicator, of the daemon that holds it.
int32_t ask(const char* function, HcclComm comm, wire::Communicator::Call call, Channel** answered) {
    if (!comm) return refuse(hccl::E_PTR, "%s: the communicator is null", function);
    bool known;
    {
        std::lock_guard lock(process().mutex);
        known = process().communicators.count(number(comm)) != 0;
        if (known && call == wire::Communicator::destroy) process().communicators.erase(number(comm));
    }
    Session* s = Session::holder(number(comm));
    if (!s || !known) return refuse(hccl::E_PARA, "%s: %p is not a communicator", function, comm);
    Channel* c = s->mine();
    if (!c) return hccl::E_RUNTIME;
    wire::Communicator question{};
    question.call = call;
    question.communicator = number(comm);
    *answered = c;
    return as_result(c->call(Kind::communicator, question));
}

int32_t known_of(const char* function, HcclComm comm, KnownCommunicator* out) {
    *out = flexnpu::client::known_communicator(comm);
    if (out->ranks > 0) return 0;
    return refuse(comm ? hccl::E_PARA : hccl::E_PTR, "%s: %p is not a communicator", function, comm);
}

}  // namespace

flexnpu::client::KnownCommunicator flexnpu::client::known_communicator(HcclComm comm) {
    std::lock_guard lock(process().mutex);
    auto it = process().communicators.find(number(comm));
    return it == process().communicators.end() ? KnownCommunicator{} : it->second;
}

extern "C" {

int32_t HcclGetRootInfo(HcclRootInfo* out) { return root_info("HcclGetRootInfo", out); }
int32_t HcclGetRootInfoScalable(HcclRootInfo* out) { return root_info("HcclGetRootInfoScalable", out); }
int32_t HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo* root, uint32_t rank, HcclComm* out) {
    return initialise("HcclCommInitRootInfo", ranks, root, rank, nullptr, out);
}
int32_t HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                                   const HcclCommConfig* config, HcclComm* out) {
    return initialise("HcclCommInitRootInfoConfig", ranks, root, rank, config, out);
}
// The first root alone leads all ranks together: what several would spread are connections of thousands of
// ranks.
int32_t HcclCommInitRootInfoScalable(uint32_t ranks, uint32_t roots, const HcclRootInfo* list, uint32_t rank,
                                     uint32_t, const HcclCommConfig* config, HcclComm* out) {
    if (roots == 0) return refuse(hccl::E_PARA, "HcclCommInitRootInfoScalable: no root");
    return initialise("HcclCommInitRootInfoScalable", ranks, list, rank, config, out);
}

// The devices have a daemon each: every one's rank joins by a thread of its own, as it would in a process of
// its own.
int32_t HcclCommInitAll(uint32_t count, int32_t* devices, HcclComm* out) {
    if (!devices || !out) return refuse(hccl::E_PTR, "HcclCommInitAll: an argument is null");
    if (count == 0 || count > wire::kMaxDevices)
        return refuse(hccl::E_PARA, "HcclCommInitAll: %u devices", count);
    for (uint32_t i = 0; i < count; i++) {
        if (devices[i] < 0 || devices[i] >= Session::count())
            return refuse(hccl::E_PARA, "HcclCommInitAll: there is no device %d", devices[i]);
        if (std::count(devices, devices + count, devices[i]) > 1)
            return refuse(hccl::E_PARA, "HcclCommInitAll: device %d twice", devices[i]);
    }
    HcclRootInfo root;
    {
        const flexnpu::client::OnDevice there(devices[0]);
        if (int32_t e = root_info("HcclCommInitAll", &root)) return e;
    }
    struct Outcome {
        int32_t result = 0;
        std::string text;
    };
    std::vector<Outcome> outcomes(count);
    std::vector<HcclComm> made(count);
    std::vector<std::thread> threads;
    // None begins before all are there: a rank alone would wait for the others.
    enum Start : int { kWait, kGo, kGiveUp };
    std::atomic<int> start{kWait};
    const auto rank = [&](uint32_t i) {
        start.wait(kWait);
        if (start == kGiveUp) return;
        Session::use(devices[i]);
        outcomes[i].result = initialise("HcclCommInitAll", count, &root, i, nullptr, &made[i]);
        if (outcomes[i].result) outcomes[i].text = flexnpu::client::last_message();
    };
    try {
        for (uint32_t i = 0; i < count; i++) threads.emplace_back(rank, i);
        start = kGo;
    } catch (const std::system_error&) {
        start = kGiveUp;
    }
    start.notify_all();
    for (std::thread& t : threads) t.join();
    if (start == kGiveUp)
        return refuse(hccl::E_RUNTIME, "HcclCommInitAll: no %u threads can be started; see ulimit -u", count);
    for (const Outcome& o : outcomes) {
        if (!o.result) continue;
        for (HcclComm comm : made) {
            if (comm) HcclCommDestroy(comm);
        }
        return refuse(o.result, "%s", o.text.c_str());
    }
    std::copy(made.begin(), made.end(), out);
    return 0;
}

// The file with the ranks names addresses of this program's machine, and belongs to it: the daemon reads no
// files for its clients.
int32_t HcclCommInitClusterInfo(const char*, uint32_t, HcclComm*) {
    return refuse(hccl::E_NOT_SUPPORT,
                  "HcclCommInitClusterInfo is not interposed by FlexNPU; use HcclGetRootInfo");
}
int32_t HcclCommInitClusterInfoConfig(const char*, uint32_t, HcclCommConfig*, HcclComm*) {
    return refuse(hccl::E_NOT_SUPPORT,
                  "HcclCommInitClusterInfoConfig is not interposed by FlexNPU; use HcclGetRootInfo");
}

int32_t HcclCreateSubCommConfig(HcclComm* parent, uint32_t count, uint32_t* members, uint64_t id,
                                uint32_t rank, HcclCommConfig* config, HcclComm* out) {
    constexpr char kName[] = "HcclCreateSubCommConfig";
    if (!parent || !out) return refuse(hccl::E_PTR, "%s: an argument is null", kName);
    KnownCommunicator known;
    if (int32_t e = known_of(kName, *parent, &known)) return e;
    if (!members) {  // a rank that is not in it
        *out = nullptr;
        return 0;
    }
    if (count == 0 || count > known.ranks || rank >= count)
        return refuse(hccl::E_PARA, "%s: rank %u of %u", kName, rank, count);
    std::vector<uint8_t> bytes;
    if (int32_t e = read_config(kName, config, &bytes)) return e;
    Session* s = Session::holder(number(*parent));
    Channel* c = s ? s->mine() : nullptr;
    if (!c) return hccl::E_RUNTIME;
    wire::Communicator ask{};
    ask.call = wire::Communicator::split;
    ask.communicator = number(*parent);
    ask.id = id;
    ask.ranks = count;
    ask.rank = rank;
    return make(*c, ask, members, count * sizeof(*members), bytes, out);
}

int32_t HcclCommDestroy(HcclComm comm) {
    Channel* c = nullptr;
    return ask("HcclCommDestroy", comm, wire::Communicator::destroy, &c);
}
int32_t HcclCommResume(HcclComm comm) {
    Channel* c = nullptr;
    return ask("HcclCommResume", comm, wire::Communicator::resume, &c);
}
int32_t HcclGetCommName(HcclComm comm, char* name) {
    if (!name) return refuse(hccl::E_PTR, "HcclGetCommName: the output is null");
    Channel* c = nullptr;
    if (int32_t e = ask("HcclGetCommName", comm, wire::Communicator::name, &c)) return e;
    std::memcpy(name, c->words(), hccl::kNameBytes);
    name[hccl::kNameBytes - 1] = '\0';
    return 0;
}
int32_t HcclGetCommAsyncError(HcclComm comm, int32_t* error) {
    if (!error) return refuse(hccl::E_PTR, "HcclGetCommAsyncError: the output is null");
    Channel* c = nullptr;
    if (int32_t e = ask("HcclGetCommAsyncError", comm, wire::Communicator::async_error, &c)) return e;
    *error = int32_t(c->words()[0]);
    return 0;
}
int32_t HcclGetRankSize(HcclComm comm, uint32_t* ranks) {
    KnownCommunicator known;
    if (!ranks) return refuse(hccl::E_PTR, "HcclGetRankSize: the output is null");
    if (int32_t e = known_of("HcclGetRankSize", comm, &known)) return e;
    *ranks = known.ranks;
    return 0;
}
int32_t HcclGetRankId(HcclComm comm, uint32_t* rank) {
    KnownCommunicator known;
    if (!rank) return refuse(hccl::E_PTR, "HcclGetRankId: the output is null");
    if (int32_t e = known_of("HcclGetRankId", comm, &known)) return e;
    *rank = known.rank;
    return 0;
}
uint32_t HcclGetCommConfigCapability() {
    Channel* c = Session::any_channel();
    wire::Communicator ask{};
    ask.call = wire::Communicator::capability;
    return c && c->call(Kind::communicator, ask) == 0 ? uint32_t(c->words()[0]) : 0;
}
const char* HcclGetErrorString(int32_t result) {
    switch (result) {
        case hccl::SUCCESS: return "no error";
        case hccl::E_PARA: return "a wrong argument";
        case hccl::E_PTR: return "a null pointer";
        case hccl::E_NOT_SUPPORT: return "not supported";
        case hccl::E_TIMEOUT: return "timed out";
        case hccl::E_RUNTIME: return "a call of the runtime failed";
        case hccl::E_REMOTE: return "another rank failed";
        default: return "HCCL failed";
    }
}

// Kept here and given to each communicator that is made, since the vendor's setting is its process's.
int32_t HcclSetConfig(HcclConfig config, HcclConfigValue value) {
    if (config != hccl::DETERMINISTIC)
        return refuse(hccl::E_NOT_SUPPORT, "HcclSetConfig: setting %d is not interposed by FlexNPU", config);
    if (value < 0) return refuse(hccl::E_PARA, "HcclSetConfig: %d", value);
    std::lock_guard lock(process().mutex);
    process().deterministic = value;
    return 0;
}
int32_t HcclGetConfig(HcclConfig config, HcclConfigValue* value) {
    if (config != hccl::DETERMINISTIC || !value)
        return refuse(hccl::E_PARA, "HcclGetConfig: %d is not a setting, or the output is null", config);
    std::lock_guard lock(process().mutex);
    *value = std::max(process().deterministic, 0);
    return 0;
}

}  // extern "C"
