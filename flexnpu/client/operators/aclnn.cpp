// Operators of aclnn: the call that asks for a workspace, the call that launches, and executors between them.
#include <algorithm>
#include <cstring>

#include "acl.gen.h"
#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/client/devices.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/operators/arguments.hpp"
#include "flexnpu/client/operators/shape_cache.hpp"
#include "flexnpu/client/session/session.hpp"
#include "fn_ids.gen.h"

namespace acl = flexnpu::acl;
namespace api = flexnpu::api;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::Session;
using flexnpu::client::Shape;
using flexnpu::client::ShapeCache;
using wire::Kind;

namespace {
constexpr uint32_t kExecutorMagic = 0x45584543;
constexpr uint32_t kDeadExecutor = 0x44454144;
constexpr int32_t kNullParameter = 161001;  // aclnn's code for a null pointer
constexpr int32_t kBadParameter = 161002;   // and for a bad value
}  // namespace

struct aclOpExecutor {
    uint32_t magic;
    uint32_t op;
    Shape* shape;
    flexnpu::client::Session* session;  // of the device that its tensors are on
    uint32_t count;
    bool repeatable;
    flexnpu::client::StepRole role;
    uint64_t first_ns;    // when an embedding's first call was made, while somebody listened to steps
    aclOpExecutor* next;  // in the free list
    uint64_t few[24];
    std::vector<uint64_t> many;  // used instead when there are more
    std::vector<std::shared_ptr<api::LateDims>>
        late;  // of the outputs, where only the data decide their shapes
    uint64_t* addresses() { return count <= std::size(few) ? few : many.data(); }
};

namespace flexnpu::client {

// Of one session: a child of fork() starts with empty caches because its session is another.
struct Operators {
    ShapeCache cache;
    Foresight foresight;
    std::mutex free_mutex;
    aclOpExecutor* free = nullptr;
};

namespace {

Operators& operators(Session* session) {
    if (Operators* ops = session->operators.load(std::memory_order_acquire)) return *ops;
    auto made = std::make_unique<Operators>();
    Operators* before = nullptr;
    if (session->operators.compare_exchange_strong(before, made.get(), std::memory_order_acq_rel))
        return *made.release();
    return *before;
}

aclOpExecutor* new_executor(Operators& ops) {
    {
        std::lock_guard lock(ops.free_mutex);
        if (aclOpExecutor* e = ops.free) {
            ops.free = e->next;
            return e;
        }
    }
    return new aclOpExecutor{};
}

void free_executor(Operators& ops, aclOpExecutor* e) {
    e->magic = kDeadExecutor;
    e->late.clear();
    std::lock_guard lock(ops.free_mutex);
    e->next = ops.free;
    ops.free = e;
}

const char* name_of(uint32_t op) { return api::kOps[op].name; }

// Asks the daemon about a shape that it has not seen. nullptr with the error recorded.
Shape* define(Channel& c, Operators& ops, uint32_t op, uint64_t hash, const CallArguments& s,
              int32_t* error) {
    std::unique_ptr<Shape> shape = ops.cache.reserve(hash, s.meta.bytes());
    if (!shape) {
        *error = fail(acl::RT_INTERNAL,
                      "%sGetWorkspaceSize: FlexNPU holds %u executors that were never launched or destroyed",
                      name_of(op), ShapeCache::kOverflow);
        return nullptr;
    }
    const std::span<const uint8_t> meta = s.meta.bytes().subspan(8);
    const wire::DefineShape head{shape->number, op, uint32_t(s.addresses.size()), uint32_t(meta.size()), 0};
    const uint64_t class_hash = hash_class(s.meta.bytes(), api::kOps[op].kinds);
    const size_t payload = sizeof(head) + s.addresses.size() * 8 + meta.size();
    if (ops.foresight.foresee(class_hash, &shape->workspace) &&
        sizeof(wire::Record) + payload <= wire::kMaxRecord) {
        uint8_t* p = c.open(payload);
        if (!p) {
            *error = c.session().gone();
            ops.cache.discard(std::move(shape));
            return nullptr;
        }
        std::memcpy(p, &head, sizeof(head));
        if (!s.addresses.empty()) std::memcpy(p + sizeof(head), s.addresses.data(), s.addresses.size() * 8);
        std::memcpy(p + sizeof(head) + s.addresses.size() * 8, meta.data(), meta.size());
        c.close(payload, Kind::define_shape);
        return ops.cache.insert(std::move(shape));
    }
    *error = c.call(Kind::define_shape, &head, sizeof(head), s.addresses.data(), s.addresses.size() * 8,
                    meta.data(), meta.size());
    if (*error) {
        ops.cache.discard(std::move(shape));
        return nullptr;
    }
    shape->workspace = c.words()[0];
    ops.foresight.learn(class_hash, shape->workspace);
    return ops.cache.insert(std::move(shape));
}

void let_go(Channel& c, Operators& ops, aclOpExecutor* e) {
    if (const uint64_t dropped = ops.cache.release(e->shape))
        c.post(Kind::drop_shape, wire::DropShape{dropped});
    free_executor(ops, e);
}

// Operators that decide an output's shape when they run; the caller asks for it with aclGetViewShape after a
// synchronise. Made when the library is loaded: a child of fork() could not finish what its parent had begun.
const std::vector<bool> late_operators = [] {
    std::vector<bool> is(api::kOpCount);
    for (const char* name : {"aclnnMaskedSelect", "aclnnNonMaxSuppression", "aclnnNonzero", "aclnnNonzeroV2",
                             "aclnnUnique", "aclnnUnique2", "aclnnUniqueConsecutive", "aclnnUniqueDim"}) {
        if (const int found = api::find_op(name); found >= 0) is[size_t(found)] = true;
    }
    return is;
}();
bool shapes_late(uint32_t op) { return late_operators[op]; }

const std::vector<StepRole> step_roles = [] {
    std::vector<StepRole> roles(api::kOpCount);
    for (uint32_t op = 0; op < api::kOpCount; op++) roles[op] = step_role(name_of(op));
    return roles;
}();

// What an operator is to its lane's step, before it is launched.
inline Steps::Launched in_step(Session& session, StepLane& lane, aclOpExecutor* e) {
    if (__builtin_expect(e->role == StepRole::none, 1)) return {};
    const std::span<const uint8_t> meta = std::span<const uint8_t>(e->shape->key).subspan(8);
    return e->role == StepRole::embedding ? session.steps.embedding(lane, meta, std::exchange(e->first_ns, 0))
                                          : session.steps.attention(lane, meta, e->role);
}

bool live(const aclOpExecutor* e) { return e && e->magic == kExecutorMagic; }

void destroy(aclOpExecutor* e) {
    // Nothing to tell the daemon of a session that is over.
    Channel* c = e->session == Session::opened(e->session->device()) ? e->session->mine() : nullptr;
    if (c)
        let_go(*c, operators(e->session), e);
    else
        free_executor(operators(e->session), e);
}

// An executor that was made on another device: possible if none of its tensors has memory there.
bool adopt(Channel& c, aclOpExecutor* e) {
    const uint64_t* a = e->addresses();
    if (std::any_of(a, a + e->count, [](uint64_t address) { return address != 0; })) {
        fail(acl::RT_PARAM_INVALID, "%s: its tensors are on device %d, it is launched on device %d",
             name_of(e->op), e->session->device(), c.session().device());
        return false;
    }
    Operators& ops = operators(&c.session());
    CallArguments s{};
    s.meta.raw(e->shape->key.data(), e->shape->key.size());
    s.addresses.assign(a, a + e->count);
    int32_t error = 0;
    Shape* shape = ops.cache.find(e->shape->hash, s.meta.bytes());
    if (!shape) shape = define(c, ops, e->op, e->shape->hash, s, &error);
    if (!shape) return false;
    if (Session::opened(e->session->device()) == e->session) {
        if (Channel* old = e->session->mine()) {
            if (const uint64_t dropped = operators(e->session).cache.release(e->shape))
                old->post(Kind::drop_shape, wire::DropShape{dropped});
        }
    }
    e->shape = shape;
    e->session = &c.session();
    return true;
}

// Position of the tensor argument `index` of an executor in its address list, counting only arguments for
// which `counts` holds; the number of its tensors in *n. -1: there is none.
template <class Counts>
int64_t position(const aclOpExecutor* e, size_t index, size_t* n, Counts counts) {
    std::vector<wire::ArgMeta> args;
    const std::vector<uint8_t>& key = e->shape->key;
    if (!wire::decode_meta(std::span(key).subspan(8), api::kOps[e->op].kinds, &args)) return -1;
    int64_t at = 0;
    for (const wire::ArgMeta& a : args) {
        size_t here = 0;
        for (const auto& t : a.tensors) here += t.present;
        if (counts(a.kind)) {
            if (index == 0) {
                *n = here;
                return at;
            }
            index--;
        }
        at += int64_t(here);
    }
    return -1;
}

template <class Counts>
aclnnStatus set_address(const char* function, aclOpExecutor* e, size_t index, size_t in_list, void* address,
                        Counts counts) {
    if (!live(e)) return fail(kNullParameter, "%s: not an executor", function);
    size_t n = 0;
    const int64_t at = position(e, index, &n, counts);
    if (at < 0 || in_list >= n)
        return fail(kBadParameter, "%s: %s has no tensor %zu", function, name_of(e->op), index);
    const uint64_t value = reinterpret_cast<uint64_t>(address);
    if (address && wire::tagged_device(value) != e->session->device()) {
        return fail(acl::RT_PARAM_INVALID, "%s: %p is not memory of the executor's device %d", function,
                    address, e->session->device());
    }
    e->addresses()[size_t(at) + in_list] = wire::untagged(value);
    return 0;
}

}  // namespace
}  // namespace flexnpu::client

using namespace flexnpu::client;

extern "C" {

aclnnStatus flexnpu_aclnn_first(uint32_t op, const AclnnArg* args, uint32_t n, uint64_t* workspace_size,
                                aclOpExecutor** executor) {
    if (!workspace_size || !executor)
        return fail(kNullParameter, "%sGetWorkspaceSize: null result pointer", name_of(op));
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    static thread_local CallArguments arguments;
    CallArguments& s = arguments;
    auto put_all = [&] {
        const uint32_t taken = s.read(op, c->session().tag(), args, n);
        if (taken == n) return 0;
        return fail(kBadParameter, "%sGetWorkspaceSize: argument %u is not a live object of kind '%c'",
                    name_of(op), taken, args[taken].kind);
    };
    if (int32_t e = put_all()) return e;
    if (__builtin_expect(wire::tagged_device(s.foreign) != 0, 0)) {
        // The executor is made where the tensors are; its launch must be there too.
        Session* holder = Session::holder(s.last);
        if (holder && !(c = holder->mine())) return flexnpu::client::last_error();
        if (int32_t e = put_all()) return e;
        if (!holder || wire::tagged_device(s.foreign) != 0) {
            return fail(acl::RT_PARAM_INVALID,
                        "%sGetWorkspaceSize: the tensors are on different devices (one at %p): under FlexNPU "
                        "an operator "
                        "reaches its own device's memory only; copy it there first",
                        name_of(op), reinterpret_cast<void*>(s.last));
        }
    }
    Operators& ops = operators(&c->session());
    const uint64_t hash = hash_bytes(s.meta.bytes());
    Shape* shape = ops.cache.find(hash, s.meta.bytes());
    if (__builtin_expect(!shape, 0)) {
        int32_t error = 0;
        shape = define(*c, ops, op, hash, s, &error);
        if (!shape) return error;
    }
    aclOpExecutor* e = new_executor(ops);
    e->magic = kExecutorMagic;
    e->op = op;
    e->shape = shape;
    e->session = &c->session();
    e->repeatable = false;
    e->role = step_roles[op];
    e->first_ns = e->role == StepRole::embedding && c->session().steps.listened() ? wire::now_ns() : 0;
    e->count = uint32_t(s.addresses.size());
    if (e->count <= std::size(e->few))
        std::memcpy(e->few, s.addresses.data(), e->count * 8);
    else
        e->many = s.addresses;
    if (__builtin_expect(shapes_late(op), 0)) {
        for (uint32_t i = 0; i < n; i++) {
            if (args[i].kind != 't' || !args[i].p) continue;
            auto* t = static_cast<aclTensor*>(args[i].p);
            t->late = std::make_shared<api::LateDims>();
            e->late.push_back(t->late);
        }
    }
    *workspace_size = shape->workspace;
    *executor = e;
    return 0;
}

aclnnStatus flexnpu_aclnn_second(uint32_t op, void* workspace, uint64_t workspace_size, aclOpExecutor* e,
                                 aclrtStream stream) {
    if (!live(e))
        return fail(kNullParameter, "%s: not an executor, or one that has been launched before", name_of(op));
    if (e->op != op) return fail(kBadParameter, "%s: the executor is one of %s", name_of(op), name_of(e->op));
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    Session& session = c->session();
    if (stream && !session.streams.has(reinterpret_cast<uint64_t>(stream))) {
        return check_stream(session, name_of(op), reinterpret_cast<uint64_t>(stream));
    }
    if (__builtin_expect(e->session != &session, 0) && !adopt(*c, e)) return flexnpu::client::last_error();
    if (__builtin_expect(flexnpu_operator_semaphore != 0, 0)) flexnpu_operator(stream, name_of(op), e);
    const size_t payload = sizeof(wire::Launch) + e->count * 8;
    if (sizeof(wire::Record) + payload > wire::kMaxRecord)
        return fail(acl::INVALID_PARAM, "%s: too many tensors", name_of(op));
    uint8_t* p = c->open(payload);
    if (!p) return session.gone();
    uint64_t late = 0;
    if (__builtin_expect(!e->late.empty(), 0)) {
        static std::atomic<uint64_t> last_late{0};
        late = last_late.fetch_add(1, std::memory_order_relaxed) + 1;
        session.add_late(late, reinterpret_cast<uint64_t>(stream), e->late);
    }
    const wire::Launch launch{reinterpret_cast<uint64_t>(stream),
                              workspace ? reinterpret_cast<uint64_t>(workspace) ^ session.tag() : 0,
                              workspace_size,
                              e->shape->number,
                              op,
                              e->count,
                              late};
    std::memcpy(p, &launch, sizeof(launch));
    std::memcpy(p + sizeof(launch), e->addresses(), e->count * 8);
    // A step's first operator is not kept waiting: the device has nothing else of ours to do.
    const bool opens = !session.step_open.load(std::memory_order_relaxed);
    if (opens) session.step_open.store(true, std::memory_order_relaxed);
    StepLane& lane = session.step_lane(reinterpret_cast<uint64_t>(stream));
    const Steps::Launched step = in_step(session, lane, e);
    c->close(payload, Kind::launch, opens, step.word());
    session.steps.launched(lane);
    if (!e->repeatable) let_go(*c, operators(&session), e);
    return 0;
}

aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor* e) {
    if (!live(e)) return fail(kNullParameter, "aclSetAclOpExecutorRepeatable: not an executor");
    e->repeatable = true;
    return 0;
}
aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor* e) {
    if (!live(e)) return fail(kNullParameter, "aclDestroyAclOpExecutor: not an executor");
    destroy(e);
    return 0;
}

aclnnStatus aclSetTensorAddr(aclOpExecutor* e, const size_t index, aclTensor*, void* address) {
    return set_address("aclSetTensorAddr", e, index, 0, address,
                       [](char k) { return strchr("TtLl", k) != nullptr; });
}
aclnnStatus aclSetInputTensorAddr(aclOpExecutor* e, const size_t index, aclTensor*, void* address) {
    return set_address("aclSetInputTensorAddr", e, index, 0, address,
                       [](char k) { return k == 'T' || k == 'L'; });
}
aclnnStatus aclSetOutputTensorAddr(aclOpExecutor* e, const size_t index, aclTensor*, void* address) {
    return set_address("aclSetOutputTensorAddr", e, index, 0, address,
                       [](char k) { return k == 't' || k == 'l'; });
}
aclnnStatus aclSetDynamicTensorAddr(aclOpExecutor* e, size_t index, const size_t in_list, aclTensorList*,
                                    void* address) {
    return set_address("aclSetDynamicTensorAddr", e, index, in_list, address,
                       [](char k) { return strchr("TtLl", k) != nullptr; });
}
aclnnStatus aclSetDynamicInputTensorAddr(aclOpExecutor* e, size_t index, const size_t in_list, aclTensorList*,
                                         void* address) {
    return set_address("aclSetDynamicInputTensorAddr", e, index, in_list, address,
                       [](char k) { return k == 'T' || k == 'L'; });
}
aclnnStatus aclSetDynamicOutputTensorAddr(aclOpExecutor* e, size_t index, const size_t in_list,
                                          aclTensorList*, void* address) {
    return set_address("aclSetDynamicOutputTensorAddr", e, index, in_list, address,
                       [](char k) { return k == 't' || k == 'l'; });
}

}  // extern "C"
