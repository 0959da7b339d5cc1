// Hccl*: communicators of the daemon's vendor library under the session's numbers, and their operations as
// records in their streams.
//
// These functions return an HcclResult. What is wrong with an argument and can be seen here is told at once;
// what the daemon or the vendor finds is told by the stream's next synchronise.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/peer.hpp"
#include "flexnpu/client/session/fork.hpp"
#include "flexnpu/client/session/session.hpp"

namespace acl = flexnpu::acl;
namespace hccl = flexnpu::hccl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::Session;
using wire::Collective;
using wire::Kind;

namespace {

uint64_t number(const void* p) { return reinterpret_cast<uint64_t>(p); }
uint64_t address(const void* p) { return wire::untagged(number(p)); }

template <class... Args>
int32_t refuse(int32_t result, const char* format, Args... args) {
    fail(result == hccl::E_NOT_SUPPORT ? acl::API_NOT_SUPPORTED : acl::INVALID_PARAM, format, args...);
    return result;
}

// The daemon answers with an HcclResult where the vendor gave one, else with an ACL error.
int32_t as_result(int32_t status) { return status < 100 ? status : int32_t(hccl::E_RUNTIME); }

// What this process knows of its communicators.
struct Known {
    uint32_t ranks, rank;
};
struct Process {
    std::mutex mutex;
    std::map<uint64_t, Known> communicators;
    int32_t deterministic = -1;  // HcclSetConfig; -1: never called
};
// Never deleted: threads may call until the end.
Process& process() {
    static auto* p = new Process;
    return *p;
}
[[maybe_unused]] const bool process_held = (flexnpu::client::hold_over_fork(process().mutex), true);

// The calls of a thread between HcclGroupStart and HcclGroupEnd.
struct Group {
    int depth = 0;
    struct Batch {
        uint64_t communicator, stream;
        std::vector<uint64_t> words;
    };
    std::vector<Batch> messages;
};
thread_local Group group;

// One call being checked and written.
class Call {
public:
    Call(const char* function, Collective::Of of, HcclComm comm, aclrtStream stream) : function_(function) {
        c_.of = of;
        c_.communicator = number(comm);
        c_.stream = number(stream);
        if (comm == nullptr) {
            result_ = refuse(hccl::E_PTR, "%s: the communicator is null", function);
            return;
        }
        {
            std::lock_guard lock(process().mutex);
            auto it = process().communicators.find(number(comm));
            if (it != process().communicators.end()) known_ = it->second;
        }
        session_ = Session::holder(number(comm));
        if (!session_ || known_.ranks == 0) {
            result_ = refuse(hccl::E_PARA, "%s: %p is not a communicator", function, comm);
            return;
        }
        if (flexnpu::client::check_stream(*session_, function, number(stream)) != 0)
            result_ = hccl::E_RUNTIME;
    }
    Call& type(int32_t type) {
        if (!result_ && hccl::element_size(type) == 0)
            result_ = refuse(hccl::E_PARA, "%s: %d is not a data type", function_, type);
        return *this;
    }
    Call& reduction(int32_t op) {
        if (!result_ && (op < hccl::SUM || op > hccl::MIN))
            result_ = refuse(hccl::E_PARA, "%s: %d is not a reduction", function_, op);
        c_.reduction = op;
        return *this;
    }
    Call& peer(uint32_t rank) {
        if (!result_ && rank >= known_.ranks)
            result_ = refuse(hccl::E_PARA, "%s: rank %u of %u", function_, rank, known_.ranks);
        c_.peer = rank;
        return *this;
    }
    Call& send(const void* p, uint64_t count, int32_t type_of) {
        c_.send = address(p);
        c_.send_count = count;
        c_.send_type = type_of;
        return buffer(p, count).type(type_of);
    }
    Call& recv(const void* p, uint64_t count, int32_t type_of) {
        c_.recv = address(p);
        c_.recv_count = count;
        c_.recv_type = type_of;
        return buffer(p, count).type(type_of);
    }
    // `n` 64-bit numbers of the caller's.
    Call& numbers(const void* p, uint64_t n) {
        if (!result_ && p == nullptr) result_ = refuse(hccl::E_PTR, "%s: an argument is null", function_);
        if (result_) return *this;
        const size_t at = words_.size();
        words_.resize(at + n);
        std::memcpy(words_.data() + at, p, n * 8);
        return *this;
    }
    Call& word(uint64_t w) {
        words_.push_back(w);
        return *this;
    }

    uint32_t ranks() const { return known_.ranks; }
    uint32_t rank() const { return known_.rank; }
    int32_t result() const { return result_; }
    int32_t wrong(const char* what) {
        if (!result_) result_ = refuse(hccl::E_PARA, "%s: %s", function_, what);
        return result_;
    }

    int32_t post() {
        if (result_) return result_;
        c_.words = uint32_t(words_.size());
        const size_t payload = sizeof(c_) + words_.size() * 8;
        if (sizeof(wire::Record) + payload > wire::kMaxRecord)
            return wrong("too many ranks or messages for one call under FlexNPU");
        Channel* channel = session_->mine();
        uint8_t* p = channel ? channel->open(payload) : nullptr;
        if (!p) return hccl::E_RUNTIME;
        std::memcpy(p, &c_, sizeof(c_));
        if (!words_.empty()) std::memcpy(p + sizeof(c_), words_.data(), words_.size() * 8);
        // The other ranks wait for this one: no nap in between.
        channel->close(payload, Kind::collective, true);
        return hccl::SUCCESS;
    }

private:
    Call& buffer(const void* p, uint64_t count) {
        if (!result_ && p == nullptr && count != 0)
            result_ = refuse(hccl::E_PTR, "%s: a buffer is null", function_);
        return *this;
    }
    const char* function_;
    int32_t result_ = hccl::SUCCESS;
    Known known_{};
    Session* session_ = nullptr;
    Collective c_{};
    std::vector<uint64_t> words_;
};

// ---- communicators ----

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

int32_t known_of(const char* function, HcclComm comm, Known* out) {
    std::lock_guard lock(process().mutex);
    auto it = process().communicators.find(number(comm));
    if (it == process().communicators.end())
        return refuse(comm ? hccl::E_PARA : hccl::E_PTR, "%s: %p is not a communicator", function, comm);
    *out = it->second;
    return 0;
}

int32_t message(const char* function, bool sends, void* buffer, uint64_t count, int32_t type, uint32_t peer,
                HcclComm comm, aclrtStream stream) {
    Call call(function, sends ? Collective::send_one : Collective::receive_one, comm, stream);
    call.send(buffer, count, type).peer(peer);
    if (call.result() || group.depth == 0) return call.post();
    // Messages of a group go together, so that neither waits for the other.
    const uint64_t words[] = {(sends ? hccl::SEND : hccl::RECV) | uint64_t(uint32_t(type)) << 32,
                              address(buffer), count, peer};
    for (Group::Batch& b : group.messages) {
        if (b.communicator == number(comm) && b.stream == number(stream)) {
            b.words.insert(b.words.end(), std::begin(words), std::end(words));
            return 0;
        }
    }
    group.messages.push_back({number(comm), number(stream), {std::begin(words), std::end(words)}});
    return 0;
}

}  // namespace

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
    for (uint32_t i = 0; i < count; i++) {
        threads.emplace_back([&, i] {
            Session::use(devices[i]);
            outcomes[i].result = initialise("HcclCommInitAll", count, &root, i, nullptr, &made[i]);
            if (outcomes[i].result) {
                const char* text = aclGetRecentErrMsg();
                outcomes[i].text = text ? text : "";
            }
        });
    }
    for (std::thread& t : threads) t.join();
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
    Known known{};
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
    Known known{};
    if (!ranks) return refuse(hccl::E_PTR, "HcclGetRankSize: the output is null");
    if (int32_t e = known_of("HcclGetRankSize", comm, &known)) return e;
    *ranks = known.ranks;
    return 0;
}
int32_t HcclGetRankId(HcclComm comm, uint32_t* rank) {
    Known known{};
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

// ---- operations ----

int32_t HcclAllReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                      HcclComm comm, aclrtStream stream) {
    return Call("HcclAllReduce", Collective::all_reduce, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .reduction(op)
        .post();
}
int32_t HcclReduce(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root,
                   HcclComm comm, aclrtStream stream) {
    Call call("HcclReduce", Collective::reduce, comm, stream);
    call.send(send, count, type).reduction(op).peer(root);
    // Only the root has somewhere to put it.
    call.recv(recv, recv ? count : 0, type);
    if (call.rank() == root && !recv && count) return call.wrong("a buffer is null");
    return call.post();
}
int32_t HcclBarrier(HcclComm comm, aclrtStream stream) {
    return Call("HcclBarrier", Collective::barrier, comm, stream).post();
}
int32_t HcclBroadcast(void* buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                      aclrtStream stream) {
    return Call("HcclBroadcast", Collective::broadcast, comm, stream)
        .send(buffer, count, type)
        .peer(root)
        .post();
}
int32_t HcclAllGather(void* send, void* recv, uint64_t count, HcclDataType type, HcclComm comm,
                      aclrtStream stream) {
    return Call("HcclAllGather", Collective::all_gather, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .post();
}
int32_t HcclAllGatherV(void* send, uint64_t count, void* recv, const void* counts, const void* displacements,
                       HcclDataType type, HcclComm comm, aclrtStream stream) {
    Call call("HcclAllGatherV", Collective::all_gather_v, comm, stream);
    return call.send(send, count, type)
        .recv(recv, 0, type)
        .numbers(counts, call.ranks())
        .numbers(displacements, call.ranks())
        .post();
}
int32_t HcclReduceScatter(void* send, void* recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                          HcclComm comm, aclrtStream stream) {
    return Call("HcclReduceScatter", Collective::reduce_scatter, comm, stream)
        .send(send, count, type)
        .recv(recv, count, type)
        .reduction(op)
        .post();
}
int32_t HcclReduceScatterV(void* send, const void* counts, const void* displacements, void* recv,
                           uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm,
                           aclrtStream stream) {
    Call call("HcclReduceScatterV", Collective::reduce_scatter_v, comm, stream);
    return call.send(send, 0, type)
        .recv(recv, count, type)
        .reduction(op)
        .numbers(counts, call.ranks())
        .numbers(displacements, call.ranks())
        .post();
}
int32_t HcclScatter(void* send, void* recv, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm,
                    aclrtStream stream) {
    Call call("HcclScatter", Collective::scatter, comm, stream);
    call.recv(recv, count, type).peer(root).send(send, send ? count : 0, type);
    if (call.rank() == root && !send && count) return call.wrong("a buffer is null");
    return call.post();
}
int32_t HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* recv,
                     uint64_t recv_count, HcclDataType recv_type, HcclComm comm, aclrtStream stream) {
    return Call("HcclAlltoAll", Collective::all_to_all, comm, stream)
        .send(send, send_count, send_type)
        .recv(recv, recv_count, recv_type)
        .post();
}
int32_t HcclAlltoAllV(const void* send, const void* send_counts, const void* send_displacements,
                      HcclDataType send_type, const void* recv, const void* recv_counts,
                      const void* recv_displacements, HcclDataType recv_type, HcclComm comm,
                      aclrtStream stream) {
    Call call("HcclAlltoAllV", Collective::all_to_all_v, comm, stream);
    const uint64_t n = call.ranks();
    return call.send(send, 0, send_type)
        .recv(recv, 0, recv_type)
        .numbers(send_counts, n)
        .numbers(send_displacements, n)
        .numbers(recv_counts, n)
        .numbers(recv_displacements, n)
        .post();
}
int32_t HcclAlltoAllVC(const void* send, const void* matrix, HcclDataType send_type, const void* recv,
                       HcclDataType recv_type, HcclComm comm, aclrtStream stream) {
    Call call("HcclAlltoAllVC", Collective::all_to_all_vc, comm, stream);
    return call.send(send, 0, send_type)
        .recv(recv, 0, recv_type)
        .numbers(matrix, uint64_t(call.ranks()) * call.ranks())
        .post();
}

int32_t HcclSend(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclSend", true, buffer, count, type, peer, comm, stream);
}
int32_t HcclRecv(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclRecv", false, buffer, count, type, peer, comm, stream);
}
int32_t HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm comm, aclrtStream stream) {
    Call call("HcclBatchSendRecv", Collective::batch, comm, stream);
    if (count && !items) return refuse(hccl::E_PTR, "HcclBatchSendRecv: an argument is null");
    for (uint32_t i = 0; i < count; i++) {
        const HcclSendRecvItem& item = items[i];
        if (item.type != hccl::SEND && item.type != hccl::RECV)
            return call.wrong("an item is neither a send nor a receive");
        if (call.type(item.data_type).peer(item.peer).result()) return call.result();
        call.word(uint64_t(uint32_t(item.type)) | uint64_t(uint32_t(item.data_type)) << 32)
            .word(address(item.buffer))
            .word(item.count)
            .word(item.peer);
    }
    return call.post();
}

// Only messages need to be together: each call returns before the daemon has made it, so several
// communicators of a thread never wait for each other. What is called between goes at once.
int32_t HcclGroupStart() {
    group.depth++;
    return 0;
}
int32_t HcclGroupEnd() {
    if (group.depth == 0) return refuse(hccl::E_PARA, "HcclGroupEnd without HcclGroupStart");
    if (--group.depth > 0) return 0;
    int32_t result = 0;
    for (const Group::Batch& b : std::exchange(group.messages, {})) {
        Call call("HcclGroupEnd", Collective::batch, reinterpret_cast<HcclComm>(b.communicator),
                  reinterpret_cast<aclrtStream>(b.stream));
        const int32_t e = call.numbers(b.words.data(), b.words.size()).post();
        result = result ? result : e;
    }
    return result;
}

}  // extern "C"
