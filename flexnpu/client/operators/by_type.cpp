// Operators named by type: compiled by the vendor when they are first met, then given to the stream.
#include "acl.gen.h"
#include "flexnpu/api/host_objects.hpp"
#include "flexnpu/client/error.hpp"
#include "flexnpu/client/session/session.hpp"
#include "flexnpu/wire/operation.hpp"

namespace acl = flexnpu::acl;
namespace wire = flexnpu::wire;
using flexnpu::client::Channel;
using flexnpu::client::fail;
using flexnpu::client::Session;

namespace {

aclError put(const char* function, int n, const aclTensorDesc* const* descs,
             const aclDataBuffer* const* buffers, std::vector<wire::OperationTensor>* out) {
    if (n < 0 || n > int(wire::kMaxOperationTensors) || (n > 0 && (!descs || !buffers))) {
        return fail(acl::INVALID_PARAM, "%s: null descriptors or buffers, or too many", function);
    }
    for (int i = 0; i < n; i++) {
        const aclTensorDesc* d = descs[i];
        const aclDataBuffer* b = buffers[i];
        if (!flexnpu::api::valid(d) || !flexnpu::api::valid(b)) {
            return fail(acl::INVALID_PARAM, "%s: argument %d is no descriptor or no buffer", function, i);
        }
        if (!d->dim_range.empty() || !d->value_range.empty() || !d->dynamic_input.empty()) {
            return fail(acl::API_NOT_SUPPORTED,
                        "%s: FlexNPU does not interpose ranges of dimensions and values", function);
        }
        out->push_back({d->dtype, d->format, d->storage_format, d->origin_format, d->placement, d->dims,
                        d->storage_dims, d->origin_dims, d->name,
                        std::string(d->constant.begin(), d->constant.end()),
                        reinterpret_cast<uint64_t>(b->data), b->size});
    }
    return 0;
}

aclError run(const char* function, const char* type, int inputs, const aclTensorDesc* const* in,
             const aclDataBuffer* const* in_data, int outputs, const aclTensorDesc* const* out,
             const aclDataBuffer* const* out_data, const aclopAttr* attr, aclopEngineType engine,
             aclopCompileType compile, const char* path, aclrtStream stream) {
    if (!type) return fail(acl::INVALID_PARAM, "%s: the operator's type is null", function);
    if (path)
        return fail(acl::API_NOT_SUPPORTED,
                    "%s: %s: operators compiled by the program are device code of its own", function, type);
    wire::Operation o;
    o.type = type;
    o.engine = engine;
    o.compile = compile;
    if (aclError e = put(function, inputs, in, in_data, &o.inputs)) return e;
    if (aclError e = put(function, outputs, out, out_data, &o.outputs)) return e;
    if (attr && !flexnpu::api::valid(attr))
        return fail(acl::INVALID_PARAM, "%s: %s: not a set of attributes", function, type);
    if (attr) o.attributes.assign(attr->values.begin(), attr->values.end());
    Channel* c = Session::channel();
    if (!c) return flexnpu::client::last_error();
    if (stream && !c->session().streams.has(reinterpret_cast<uint64_t>(stream))) {
        return fail(acl::RT_INVALID_HANDLE, "%s: %p is not a stream", function, stream);
    }
    const std::vector<uint8_t> bytes = wire::encode_operation(o);
    const wire::RunOp head{reinterpret_cast<uint64_t>(stream), bytes.size()};
    if (sizeof(wire::Record) + sizeof(head) + bytes.size() + 8 > wire::kMaxRecord) {
        return fail(acl::INVALID_PARAM, "%s: %s: its descriptors and constants are too large", function,
                    type);
    }
    return c->call(wire::Kind::run_op, &head, sizeof(head), bytes.data(), bytes.size());
}

}  // namespace

extern "C" {

aclError aclopCompileAndExecute(const char* type, int inputs, const aclTensorDesc* const* in,
                                const aclDataBuffer* const* in_data, int outputs,
                                const aclTensorDesc* const* out, aclDataBuffer* const* out_data,
                                const aclopAttr* attr, aclopEngineType engine, aclopCompileType compile,
                                const char* path, aclrtStream stream) {
    return run("aclopCompileAndExecute", type, inputs, in, in_data, outputs, out, out_data, attr, engine,
               compile, path, stream);
}
aclError aclopCompileAndExecuteV2(const char* type, int inputs, aclTensorDesc** in, aclDataBuffer** in_data,
                                  int outputs, aclTensorDesc** out, aclDataBuffer** out_data, aclopAttr* attr,
                                  aclopEngineType engine, aclopCompileType compile, const char* path,
                                  aclrtStream stream) {
    return run("aclopCompileAndExecuteV2", type, inputs, in, in_data, outputs, out, out_data, attr, engine,
               compile, path, stream);
}
}
