// Calls libatb.so as torch_npu's libop_plugin_atb does: through declarations of its own, by the same symbols.
// Compares each operation with its definition and prints the largest error; ends with status 1 and a line on
// stderr otherwise.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "acl.gen.h"

namespace atb {

template <class T>
class SVector {
public:
    void push_back(const T& one) { storage_[size_++] = one; }

private:
    size_t capacity_ = 0;
    size_t size_ = 0;
    T storage_[65] = {};
    T* heap_ = nullptr;
};
struct Tensor {
    int32_t dtype = -1, format = 2;
    int64_t dims[8] = {};
    uint64_t rank = 0;
    void* device = nullptr;
    void* host = nullptr;
    uint64_t bytes = 0;
};
struct VariantPack {
    SVector<Tensor> in, out;
};
class Context {
public:
    virtual ~Context() = default;
    virtual int SetExecuteStream(void* stream) = 0;
    virtual void* GetExecuteStream() const = 0;
    virtual int SetAsyncTilingCopyStatus(bool enable) = 0;
    virtual bool GetAsyncTilingCopyStatus() const = 0;
};
class Operation {
public:
    virtual ~Operation() = default;
    virtual std::string GetName() const = 0;
    virtual int InferShape(const void* in, void* out) const = 0;
    virtual uint32_t GetInputNum() const = 0;
    virtual uint32_t GetOutputNum() const = 0;
    virtual int Setup(const VariantPack& pack, uint64_t& workspace, Context* context) = 0;
    virtual int Execute(const VariantPack& pack, uint8_t* workspace, uint64_t size, Context* context) = 0;
};
int CreateContext(Context** context);
int DestroyContext(Context* context);
template <class P>
int CreateOperation(const P& parameters, Operation** operation);
int DestroyOperation(Operation* operation);
struct Utils {
    static uint64_t GetTensorSize(const Tensor& tensor);
};

namespace infer {
struct LinearParam {
    bool transpose_a = false, transpose_b = true, has_bias = true;
    int out_dtype = -1;
    bool accumulate = false;
    uint8_t reserved[23] = {};
};
struct ReshapeAndCacheParam {
    int compress = 0, caches = 0;
    uint8_t reserved[16] = {};
};
struct RopeParam {
    int32_t coefficient = 4, format = 0;
    uint8_t reserved[8] = {};
};
struct PagedAttentionParam {
    int32_t heads = 0;
    float scale = 1;
    int32_t kv_heads = 0;
    int mask = 0;
    bool batch_status = false;
    int quantised = 0, out_dtype = -1;
    bool offset = false;
    int compress = 0, calculation = 0, scaling = 0, layout = 0;
    uint32_t latent = 0;
    uint8_t reserved[68] = {};
};
struct GroupTopkParam {
    int32_t groups = 1, k = 0;
    uint16_t flag = 0, n = 1;
    uint8_t reserved[12] = {};
};
}  // namespace infer
}  // namespace atb

namespace {

using Half = _Float16;
constexpr int kFloat = 0, kHalf = 1, kInt32 = 3;

[[noreturn]] void fail(const std::string& what) {
    const char* why = aclGetRecentErrMsg();
    fprintf(stderr, "%s: %s\n", what.c_str(), why ? why : "");
    exit(1);
}
void check(int status, const std::string& what) {
    if (status != 0) fail(what + ": " + std::to_string(status));
}
void refused(int status, const std::string& what) {
    if (status == 0) fail(what + " was not refused");
}

uint32_t state = 1;
float random_value() {
    state = state * 1664525u + 1013904223u;
    return float(state >> 8) / float(1 << 23) - 1;
}

template <class T>
constexpr int dtype_of() {
    return std::is_same_v<T, Half> ? kHalf : std::is_same_v<T, float> ? kFloat : kInt32;
}

// A tensor on the device, with what is expected of it on the host.
template <class T>
struct Array {
    std::vector<T> host;
    atb::Tensor tensor;

    Array(std::vector<int64_t> dims, const std::function<T(size_t)>& value) {
        size_t n = 1;
        for (int64_t d : dims) tensor.dims[tensor.rank++] = d, n *= size_t(d);
        for (size_t i = 0; i < n; i++) host.push_back(value(i));
        tensor.dtype = dtype_of<T>();
        tensor.bytes = n * sizeof(T);
        if (atb::Utils::GetTensorSize(tensor) != tensor.bytes) fail("GetTensorSize");
        check(aclrtMalloc(&tensor.device, tensor.bytes, 0), "aclrtMalloc");
        check(aclrtMemcpy(tensor.device, tensor.bytes, host.data(), tensor.bytes, 1), "aclrtMemcpy");
    }
    explicit Array(std::vector<int64_t> dims)
        : Array(std::move(dims), [](size_t) { return T(random_value()); }) {}
    std::vector<T> read() const {
        std::vector<T> out(host.size());
        check(aclrtMemcpy(out.data(), tensor.bytes, tensor.device, tensor.bytes, 2), "aclrtMemcpy");
        return out;
    }
};

template <class T>
double error(const std::vector<T>& a, const std::vector<float>& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); i++) worst = std::max(worst, double(std::abs(float(a[i]) - b[i])));
    return worst;
}
void report(const char* name, double worst, double allowed) {
    printf("%s %g\n", name, worst);
    if (!(worst <= allowed)) fail(std::string(name) + ": error " + std::to_string(worst));
}

aclrtStream stream;
atb::Context* context;

template <class P>
atb::Operation* create(const P& parameters) {
    atb::Operation* operation = nullptr;
    check(atb::CreateOperation(parameters, &operation), "CreateOperation");
    return operation;
}

void run(atb::Operation* operation, const atb::VariantPack& pack) {
    uint64_t size = 0;
    check(operation->Setup(pack, size, context), operation->GetName() + " Setup");
    void* workspace = nullptr;
    if (size) check(aclrtMalloc(&workspace, size, 0), "workspace");
    check(operation->Execute(pack, static_cast<uint8_t*>(workspace), size, context), operation->GetName());
    check(aclrtSynchronizeStream(stream), "aclrtSynchronizeStream");
    if (workspace) aclrtFree(workspace);
}

atb::VariantPack pack(std::initializer_list<const atb::Tensor*> in,
                      std::initializer_list<const atb::Tensor*> out) {
    atb::VariantPack made;
    for (const auto* t : in) made.in.push_back(*t);
    for (const auto* t : out) made.out.push_back(*t);
    return made;
}

void linear() {
    constexpr int64_t m = 6, k = 5, n = 7;
    Array<Half> a({k, m}), b({k, n});
    Array<float> c({m, n});
    std::vector<float> expected = c.host;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t x = 0; x < k; x++)
                expected[size_t(i * n + j)] +=
                    float(a.host[size_t(x * m + i)]) * float(b.host[size_t(x * n + j)]);
    atb::infer::LinearParam p;
    p.transpose_a = true, p.transpose_b = false, p.has_bias = false, p.accumulate = true;
    atb::Operation* operation = create(p);
    run(operation, pack({&a.tensor, &b.tensor, &c.tensor}, {&c.tensor}));
    report("Linear", error(c.read(), expected), 1e-5);
    atb::DestroyOperation(operation);
}

void rope() {
    constexpr int64_t tokens = 5, heads = 4, kv_heads = 2, width = 16;
    Array<Half> q({tokens, heads * width}), k({tokens, kv_heads * width}), cosine({tokens, width}),
        sine({tokens, width});
    Array<int32_t> lengths({1}, [](size_t) { return tokens; });
    auto expected = [&](const Array<Half>& x, int64_t n) {
        std::vector<float> out;
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t h = 0; h < n; h++)
                for (int64_t i = 0; i < width; i++) {
                    auto at = [&](int64_t j) { return float(x.host[size_t((t * n + h) * width + j)]); };
                    const float turned = i < width / 2 ? -at(i + width / 2) : at(i - width / 2);
                    out.push_back(at(i) * float(cosine.host[size_t(t * width + i)]) +
                                  turned * float(sine.host[size_t(t * width + i)]));
                }
        return out;
    };
    const auto q_expected = expected(q, heads), k_expected = expected(k, kv_heads);
    atb::infer::RopeParam p;
    p.coefficient = 2;
    atb::Operation* operation = create(p);
    run(operation,
        pack({&q.tensor, &k.tensor, &cosine.tensor, &sine.tensor, &lengths.tensor}, {&q.tensor, &k.tensor}));
    report("Rope", std::max(error(q.read(), q_expected), error(k.read(), k_expected)), 2e-3);
    // As while a graph is captured: destroyed right after Execute.
    atb::DestroyOperation(operation);
    p.coefficient = 16;
    refused(atb::CreateOperation(p, &operation), "Rope of 16");
}

void cache_and_attention() {
    constexpr int64_t blocks = 6, block = 4, heads = 4, kv_heads = 2, width = 16, row = kv_heads * width;
    // Two sequences of 7 and 3 tokens, on blocks 5, 0 and on block 2; the last token is padding.
    const std::vector<int32_t> slots{20, 21, 22, 23, 0, 1, 2, 8, 9, 10, -1};
    const auto tokens = int64_t(slots.size());
    Array<Half> key({tokens, kv_heads, width}), value({tokens, kv_heads, width}), query({2, heads, width}),
        keys({blocks, block, kv_heads, width}), values({blocks, block, kv_heads, width}),
        out({2, heads, width});
    Array<int32_t> at({tokens}, [&](size_t i) { return slots[i]; });
    auto written = [&](const Array<Half>& cache, const Array<Half>& from) {
        std::vector<float> all(cache.host.begin(), cache.host.end());
        for (size_t t = 0; t < slots.size(); t++)
            for (int64_t i = 0; slots[t] >= 0 && i < row; i++)
                all[size_t(slots[t] * row + i)] = float(from.host[t * size_t(row) + size_t(i)]);
        return all;
    };
    const auto k_expected = written(keys, key), v_expected = written(values, value);
    atb::Operation* store = create(atb::infer::ReshapeAndCacheParam{});
    run(store, pack({&key.tensor, &value.tensor, &keys.tensor, &values.tensor, &at.tensor},
                    {&keys.tensor, &values.tensor}));
    report("ReshapeAndCache", std::max(error(keys.read(), k_expected), error(values.read(), v_expected)), 0);
    atb::DestroyOperation(store);

    const std::vector<std::vector<int>> places{{20, 21, 22, 23, 0, 1, 2}, {8, 9, 10}};
    std::vector<float> expected;
    for (size_t s = 0; s < 2; s++)
        for (int64_t h = 0; h < heads; h++) {
            std::vector<double> weight;
            double total = 0;
            for (int place : places[s]) {
                double dot = 0;
                for (int64_t i = 0; i < width; i++)
                    dot += double(query.host[(s * heads + size_t(h)) * width + size_t(i)]) *
                           double(k_expected[size_t(place * row + h / 2 * width + i)]);
                weight.push_back(std::exp(dot * 0.25));
                total += weight.back();
            }
            for (int64_t i = 0; i < width; i++) {
                double sum = 0;
                for (size_t t = 0; t < places[s].size(); t++)
                    sum += weight[t] / total *
                           double(v_expected[size_t(places[s][t] * row + h / 2 * width + i)]);
                expected.push_back(float(sum));
            }
        }
    Array<int32_t> table({2, 2}, [](size_t i) { return std::vector<int32_t>{5, 0, 2, 0}[i]; });
    std::vector<int32_t> contexts{7, 3};
    atb::Tensor lengths;
    lengths.dtype = kInt32, lengths.dims[0] = 2, lengths.rank = 1, lengths.host = contexts.data(),
    lengths.bytes = 8;
    atb::infer::PagedAttentionParam p;
    p.heads = heads, p.kv_heads = kv_heads, p.scale = 0.25f;
    atb::Operation* attention = create(p);
    const auto whole =
        pack({&query.tensor, &keys.tensor, &values.tensor, &table.tensor, &lengths}, {&out.tensor});
    // Questions for the size, which nobody executes.
    uint64_t size = 0;
    for (int32_t i = 1; i <= 20; i++) {
        contexts[0] = 1 + i % 7;
        check(attention->Setup(whole, size, context), "Setup alone");
    }
    contexts = {7, 3};
    run(attention, whole);
    report("PagedAttention", error(out.read(), expected), 2e-3);
    refused(attention->Setup(pack({&query.tensor}, {&out.tensor}), size, context), "too few inputs");
    lengths.host = nullptr;
    refused(attention->Setup(
                pack({&query.tensor, &keys.tensor, &values.tensor, &table.tensor, &lengths}, {&out.tensor}),
                size, context),
            "lengths on the device");
    atb::DestroyOperation(attention);
    p.mask = 3;
    refused(atb::CreateOperation(p, &attention), "a mask");
}

}  // namespace

int main() {
    check(aclInit(nullptr), "aclInit");
    check(aclrtSetDevice(0), "aclrtSetDevice");
    check(aclrtCreateStream(&stream), "aclrtCreateStream");
    check(atb::CreateContext(&context), "CreateContext");
    check(context->SetExecuteStream(stream), "SetExecuteStream");
    if (context->GetExecuteStream() != stream) fail("GetExecuteStream");
    linear();
    rope();
    cache_and_attention();
    atb::Operation* operation = nullptr;
    refused(atb::CreateOperation(atb::infer::GroupTopkParam{}, &operation), "GroupTopk");
    check(atb::DestroyContext(context), "DestroyContext");
    return 0;
}
