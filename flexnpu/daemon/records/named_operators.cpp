#include "flexnpu/daemon/records/named_operators.hpp"

#include <algorithm>

#include "flexnpu/wire/operation.hpp"

namespace flexnpu::daemon {

namespace {

// NCHW, NHWC, ND, HWCN, NDHWC, NCDHW, NC, NCL, and none given.
bool plain_format(int32_t f) {
    for (const int32_t known : {-1, 0, 1, 2, 16, 27, 30, 35, 47}) {
        if (f == known) return true;
    }
    return false;
}

// Bytes of a tensor of these dimensions; false if that is no number.
bool bytes_of(int32_t dtype, const std::vector<int64_t>& dims, uint64_t* out) {
    uint64_t n = acl::element_size(dtype);
    if (n == 0) return false;
    for (const int64_t d : dims) {
        if (d < 0 || __builtin_mul_overflow(n, uint64_t(d), &n)) return false;
    }
    *out = n;
    return true;
}

// The vendor's objects for one operation.
class Objects {
public:
    explicit Objects(Vendor& vendor) : vendor_(vendor) {}
    ~Objects() {
        for (auto* d : descs_) fn<decltype(&::aclDestroyTensorDesc)>(api::FN_aclDestroyTensorDesc)(d);
        for (auto* b : buffers_) fn<decltype(&::aclDestroyDataBuffer)>(api::FN_aclDestroyDataBuffer)(b);
        if (attr_) fn<decltype(&::aclopDestroyAttr)>(api::FN_aclopDestroyAttr)(attr_);
    }
    Objects(const Objects&) = delete;
    Objects& operator=(const Objects&) = delete;

    // Looked up before a worker uses them: Vendor::function() belongs to one thread.
    bool complete() {
        for (const api::FnId id : kNeeded) {
            if (!(functions_[id] = vendor_.function(id))) return false;
        }
        return true;
    }
    int32_t run(const wire::Operation& o, void* stream) {
        const auto n = o.inputs.size();
        for (const auto* side : {&o.inputs, &o.outputs}) {
            for (const wire::OperationTensor& t : *side) {
                if (!add(t)) return acl::RT_MEMORY_ALLOCATION;
            }
        }
        attr_ = fn<decltype(&::aclopCreateAttr)>(api::FN_aclopCreateAttr)();
        for (const auto& [name, value] : o.attributes) {
            if (int32_t e = attribute(name.c_str(), value)) return e;
        }
        return fn<decltype(&::aclopCompileAndExecute)>(api::FN_aclopCompileAndExecute)(
            o.type.c_str(), int(n), descs_.data(), buffers_.data(), int(o.outputs.size()), descs_.data() + n,
            buffers_.data() + n, attr_, o.engine, o.compile, nullptr, stream);
    }

private:
    static constexpr api::FnId kNeeded[] = {
        api::FN_aclCreateTensorDesc,      api::FN_aclDestroyTensorDesc,    api::FN_aclCreateDataBuffer,
        api::FN_aclDestroyDataBuffer,     api::FN_aclopCreateAttr,         api::FN_aclopDestroyAttr,
        api::FN_aclSetTensorDescName,     api::FN_aclSetTensorFormat,      api::FN_aclSetTensorShape,
        api::FN_aclSetTensorOriginFormat, api::FN_aclSetTensorOriginShape, api::FN_aclSetTensorConst,
        api::FN_aclopSetAttrBool,         api::FN_aclopSetAttrInt,         api::FN_aclopSetAttrFloat,
        api::FN_aclopSetAttrDataType,     api::FN_aclopSetAttrString,      api::FN_aclopSetAttrListBool,
        api::FN_aclopSetAttrListInt,      api::FN_aclopSetAttrListFloat,   api::FN_aclopCompileAndExecute,
    };
    template <class F>
    F fn(api::FnId id) {
        return reinterpret_cast<F>(functions_.at(id));
    }

    bool add(const wire::OperationTensor& t) {
        auto* d = fn<decltype(&::aclCreateTensorDesc)>(api::FN_aclCreateTensorDesc)(
            t.dtype, int(t.dims.size()), t.dims.data(), t.format);
        if (!d) return false;
        descs_.push_back(d);
        if (t.storage_format >= 0)
            fn<decltype(&::aclSetTensorFormat)>(api::FN_aclSetTensorFormat)(d, t.storage_format);
        if (!t.storage_dims.empty()) {
            fn<decltype(&::aclSetTensorShape)>(api::FN_aclSetTensorShape)(d, int(t.storage_dims.size()),
                                                                          t.storage_dims.data());
        }
        if (t.origin_format >= 0)
            fn<decltype(&::aclSetTensorOriginFormat)>(api::FN_aclSetTensorOriginFormat)(d, t.origin_format);
        if (!t.origin_dims.empty()) {
            fn<decltype(&::aclSetTensorOriginShape)>(api::FN_aclSetTensorOriginShape)(
                d, int(t.origin_dims.size()), t.origin_dims.data());
        }
        if (!t.name.empty())
            fn<decltype(&::aclSetTensorDescName)>(api::FN_aclSetTensorDescName)(d, t.name.c_str());
        if (!t.constant.empty()) {
            fn<decltype(&::aclSetTensorConst)>(api::FN_aclSetTensorConst)(
                d, const_cast<char*>(t.constant.data()), t.constant.size());
        }
        auto* b = fn<decltype(&::aclCreateDataBuffer)>(api::FN_aclCreateDataBuffer)(
            reinterpret_cast<void*>(t.address), t.bytes);
        if (b) buffers_.push_back(b);
        return b != nullptr;
    }

    // `value`: a letter, a count, and the values' bytes; a client may send anything.
    int32_t attribute(const char* name, const std::string& value) {
        int32_t n = 0;
        if (value.size() < 5) return acl::INVALID_PARAM;
        std::memcpy(&n, value.data() + 1, sizeof(n));
        const std::string raw = value.substr(5);
        const auto holds = [&](size_t size) { return n >= 0 && raw.size() == size_t(n) * size; };
        const auto one = [&](auto v) {
            std::memcpy(&v, raw.data(), sizeof(v));
            return v;
        };
        switch (value[0]) {
            case 'b':
                return n == 1 && holds(1) ? fn<decltype(&::aclopSetAttrBool)>(api::FN_aclopSetAttrBool)(
                                                attr_, name, one(uint8_t{}))
                                          : bad();
            case 'i':
                return n == 1 && holds(8) ? fn<decltype(&::aclopSetAttrInt)>(api::FN_aclopSetAttrInt)(
                                                attr_, name, one(int64_t{}))
                                          : bad();
            case 'f':
                return n == 1 && holds(4) ? fn<decltype(&::aclopSetAttrFloat)>(api::FN_aclopSetAttrFloat)(
                                                attr_, name, one(float{}))
                                          : bad();
            case 'D':
                return n == 1 && holds(4) ? fn<decltype(&::aclopSetAttrDataType)>(
                                                api::FN_aclopSetAttrDataType)(attr_, name, one(int32_t{}))
                                          : bad();
            case 's':
                return holds(1) ? fn<decltype(&::aclopSetAttrString)>(api::FN_aclopSetAttrString)(attr_, name,
                                                                                                  raw.c_str())
                                : bad();
            case 'B': return holds(1) ? list<uint8_t>(api::FN_aclopSetAttrListBool, name, n, raw) : bad();
            case 'I': return holds(8) ? list<int64_t>(api::FN_aclopSetAttrListInt, name, n, raw) : bad();
            case 'F': return holds(4) ? list<float>(api::FN_aclopSetAttrListFloat, name, n, raw) : bad();
            default: return acl::API_NOT_SUPPORTED;
        }
    }
    static int32_t bad() { return acl::INVALID_PARAM; }
    template <class T>
    int32_t list(api::FnId id, const char* name, int n, const std::string& raw) {
        std::vector<T> values(static_cast<size_t>(n));
        if (n) std::memcpy(values.data(), raw.data(), raw.size());
        return fn<aclError (*)(aclopAttr*, const char*, int, const T*)>(id)(attr_, name, n, values.data());
    }

    Vendor& vendor_;
    std::unordered_map<uint32_t, void*> functions_;
    std::vector<aclTensorDesc*> descs_;
    std::vector<aclDataBuffer*> buffers_;
    aclopAttr* attr_ = nullptr;
};

}  // namespace

void NamedOperatorRecords::run(Session& s, Payload p, const Reply& reply) {
    wire::RunOp head;
    Payload rest;
    auto o = std::make_shared<wire::Operation>();
    // A size near the greatest number rounds up to nothing.
    if (!take(p, &head, &rest) || head.bytes > rest.size() || rest.size() != wire::round8(head.bytes) ||
        !wire::decode_operation(rest.first(head.bytes), o.get())) {
        return malformed(s, reply, "operator");
    }
    Lane* lane = lane_at(s, head.stream, reply, "aclopCompileAndExecute");
    if (!lane) return;
    if (lane->capture || lane->update) {
        return refuse(s, reply, acl::RT_CAPTURE_MODE_NOT_SUPPORT,
                      "FlexNPU cannot capture an operator that is named by type");
    }
    for (const auto* side : {&o->inputs, &o->outputs}) {
        for (const wire::OperationTensor& t : *side) {
            const std::string who = "aclopCompileAndExecute: " + o->type + ": ";
            if (!plain_format(t.format) || !plain_format(t.storage_format) ||
                !plain_format(t.origin_format) || t.placement != 0) {
                return refuse(s, reply, acl::API_NOT_SUPPORTED,
                              who + "FlexNPU does not interpose private formats and tensors in host memory");
            }
            uint64_t need = 0;
            for (const auto* dims : {&t.dims, &t.storage_dims, &t.origin_dims}) {
                uint64_t bytes = 0;
                if ((dims == &t.dims || !dims->empty()) && !bytes_of(t.dtype, *dims, &bytes)) {
                    return refuse(s, reply, acl::INVALID_PARAM, who + "a tensor whose size is not known");
                }
                need = std::max(need, bytes);
            }
            if (need > t.bytes)
                return refuse(s, reply, acl::INVALID_PARAM, who + "a buffer is smaller than its tensor");
            if (t.bytes && !s.memory.holds(t.address, t.bytes)) {
                return refuse(s, reply, acl::RT_PARAM_INVALID,
                              who + hex(t.address) + " (" + std::to_string(t.bytes) +
                                  " bytes) is not in memory of this process");
            }
        }
    }
    auto objects = std::make_shared<Objects>(vendor_);
    if (!objects->complete())
        return refuse(s, reply, acl::API_NOT_SUPPORTED,
                      "aclopCompileAndExecute: this CANN has no operators by type");
    auto item = std::make_unique<Item>(CallItem{});
    item->as<CallItem>().dropped = [reply] { reply.fail({acl::RT_STREAM_ABORT, "the stream was aborted"}); };
    item->as<CallItem>().start = [this, o, objects, reply](Lane& l, uint64_t ticket) {
        lanes_.count_call(l);
        worker_of(*reply.ring)
            .post([this, o, objects, reply, id = l.id, stream = l.stream, ticket]() mutable {
                const int32_t e = objects->run(*o, stream);
                const Failure failure{e, e ? vendor_.message(o->type.c_str(), e) : ""};
                objects.reset();
                post([this, failure, reply, id, ticket] {
                    lanes_.call_over(id, ticket);
                    if (failure.code) {
                        failures_.count_vendor_error();
                        return reply.fail(failure);
                    }
                    reply.ok();
                });
            });
    };
    push(*lane, std::move(item));
}

}  // namespace flexnpu::daemon
