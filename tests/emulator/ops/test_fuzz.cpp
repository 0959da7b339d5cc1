// Every operator with a body, called with arguments of the right kinds and random shapes, strides, types and
// contents: each call is refused or runs, nothing crashes, and no byte outside the tensors changes.
//
// FLEXNPU_FUZZ_ROUNDS (default 150) calls an operator; FLEXNPU_FUZZ_SEED starts elsewhere.
#include <doctest/doctest.h>

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/aclnn_invoke.hpp"
#include "fn_ids.gen.h"

using namespace flexnpu;

namespace {

constexpr int64_t kSlot = 1 << 12;  // bytes of device memory for one tensor
constexpr int kSlots = 24;

uint64_t setting(const char* name, uint64_t fallback) {
    const char* text = std::getenv(name);
    return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

class Fuzzer {
public:
    explicit Fuzzer(uint64_t seed) : random_(seed) {
        REQUIRE(aclrtMalloc(&memory_, kSlot * kSlots, 0) == 0);
        shadow_.resize(kSlot * kSlots);
    }
    ~Fuzzer() { aclrtFree(memory_); }
    Fuzzer(const Fuzzer&) = delete;
    Fuzzer& operator=(const Fuzzer&) = delete;

    // True when the first call accepted the arguments.
    bool once(uint32_t op, void* first, void* second) {
        release_all();
        base_.clear();
        for (int64_t n = pick(0, 4); n > 0; n--) {
            base_.push_back(pick(0, 9) == 0 ? pick(0, 1) : pick(1, 6));
        }
        dtype_ = kTypes[pick(0, int64_t(std::size(kTypes)) - 1)];
        const std::string kinds = api::kOps[op].kinds;
        attention_ = std::string(api::kOps[op].name).find("Attention") != std::string::npos;
        if (attention_) {
            // Unguided, these are never accepted: query, key, value and output of one shape and a fitting
            // layout, most other inputs absent.
            static const char* const layouts[] = {"BNSD", "BSND", "BSH", "SBH", "TND"};
            layout_ = layouts[pick(0, 4)];
            base_.resize(layout_.size() == 4 ? 4 : 3);
            for (int64_t& d : base_) {
                d = pick(1, 4);
            }
            heads_ = layout_ == "BNSD"   ? base_[1]
                     : layout_ == "BSND" ? base_[2]
                     : layout_ == "TND"  ? base_[1]
                                         : 1;
            dtype_ = pick(0, 1) ? 0 : pick(0, 1) ? 1 : 27;
        }
        std::vector<AclnnArg> args;
        for (size_t i = 0; i < kinds.size() && kinds[i] != '-'; i++) {
            plain_ = attention_ && (i < 3 || i + 1 == kinds.size() || (i + 2 == kinds.size() && pick(0, 1)));
            args.push_back(argument(kinds[i]));
        }
        auto* bytes = static_cast<unsigned char*>(memory_);
        for (int64_t i = 0; i < kSlot * kSlots; i += 8) {
            // Small integers and plain floats more often than noise, so that indices are sometimes in range.
            uint64_t word = random_();
            word = word % 3 == 0 ? word : word % 3 == 1 ? word % 7 : 0x3F8000003F800000u;
            std::memcpy(bytes + i, &word, 8);
        }
        std::memcpy(shadow_.data(), memory_, shadow_.size());
        uint64_t size;
        aclOpExecutor* executor = nullptr;
        last_ = api::invoke_first(op, first, args.data(), &size, &executor);
        if (last_ != 0) {
            CHECK(executor == nullptr);
            const char* text = aclGetRecentErrMsg();
            CHECK(text != nullptr);
            return false;
        }
        using Second = aclnnStatus (*)(void*, uint64_t, aclOpExecutor*, aclrtStream);
        if (stream_ == nullptr) {
            REQUIRE(aclrtCreateStream(&stream_) == 0);
        }
        REQUIRE(reinterpret_cast<Second>(second)(nullptr, 0, executor, stream_) == 0);
        const aclError error = aclrtSynchronizeStream(stream_);
        CHECK((error == 0 || error == 507015));
        if (error != 0) {  // a stream keeps its error
            aclrtDestroyStream(stream_);
            stream_ = nullptr;
        }
        check_guards();
        return true;
    }
    aclnnStatus last() const { return last_; }

private:
    static constexpr int32_t kTypes[] = {0, 0, 0, 1, 27, 9, 9, 3, 12, 11, 2, 4, 6, 16};

    int64_t pick(int64_t low, int64_t high) { return low + int64_t(random_() % uint64_t(high - low + 1)); }

    AclnnArg argument(char kind) {
        AclnnArg a{kind, {}};
        switch (kind) {
            case 'T':
            case 't': {
                const bool absent =
                    attention_ && !plain_ ? pick(0, 19) != 0 : !attention_ && pick(0, 15) == 0;
                a.p = absent ? nullptr : tensor();
                break;
            }
            case 'L':
            case 'l': {
                std::vector<aclTensor*> list;
                for (int64_t n = plain_ ? 1 : pick(0, 3); n > 0; n--) {
                    list.push_back(tensor());
                }
                a.p = aclCreateTensorList(list.data(), list.size());
                owned_.clear_last(list.size());
                lists_.push_back(static_cast<aclTensorList*>(a.p));
                break;
            }
            case 'S': {
                double value = double(pick(-3, 5)) / double(pick(1, 2));
                int64_t whole = pick(-3, 5);
                const bool real = pick(0, 1);
                a.p = aclCreateScalar(real ? static_cast<void*>(&value) : &whole, real ? 11 : 9);
                scalars_.push_back(static_cast<aclScalar*>(a.p));
                break;
            }
            case 'I': {
                std::vector<int64_t> values(static_cast<size_t>(pick(0, 4)));
                for (int64_t& v : values) {
                    v = pick(-2, 4);
                }
                const bool absent = pick(0, 9) == 0 || (attention_ && pick(0, 2) != 0);
                a.p = absent ? nullptr : aclCreateIntArray(values.data(), values.size());
                if (a.p) {
                    arrays_.push_back(static_cast<aclIntArray*>(a.p));
                }
                break;
            }
            case 'D': a.i = pick(0, 2) ? dtype_ : pick(-1, 30); break;
            case 'd':
            case 'f': a.d = attention_ && pick(0, 3) ? 1 : double(pick(-2, 8)) / 4; break;
            case 's': {
                static const char* const texts[] = {"BNSD", "BSND",      "BSH",  "SBH",
                                                    "TND",  "BNSD_BSND", "none", ""};
                a.s = attention_ && pick(0, 9) ? layout_.c_str() : texts[pick(0, 7)];
                break;
            }
            case 'C':
            case 'F':
            case 'B': a.p = nullptr; break;
            default: a.i = attention_ && pick(0, 3) ? heads_ : pick(-3, 6); break;
        }
        return a;
    }

    aclTensor* tensor() {
        std::vector<int64_t> dims = base_;
        switch (plain_ && pick(0, 19) ? 5 : pick(0, 5)) {
            case 0:  // reduced
                for (int64_t& d : dims) {
                    d = pick(0, 1) ? d : 1;
                }
                break;
            case 1:  // another rank
                dims.resize(static_cast<size_t>(pick(0, 5)), pick(1, 4));
                break;
            case 2:
                if (!dims.empty()) {
                    dims[static_cast<size_t>(pick(0, int64_t(dims.size()) - 1))] = pick(0, 7);
                }
                break;
            default: break;
        }
        const int32_t dtype = plain_ || pick(0, 4) ? dtype_ : kTypes[pick(0, int64_t(std::size(kTypes)) - 1)];
        // Strides: dense, permuted, gaps, or repeated.
        std::vector<size_t> order(dims.size());
        for (size_t i = 0; i < order.size(); i++) {
            order[i] = order.size() - 1 - i;
        }
        if (pick(0, 2) == 0) {
            std::shuffle(order.begin(), order.end(), random_);
        }
        std::vector<int64_t> strides(dims.size());
        int64_t stride = pick(0, 4) == 0 ? 2 : 1, elements = 1;
        for (size_t i : order) {
            strides[i] = stride;
            elements += (std::max<int64_t>(dims[i], 1) - 1) * stride;
            stride *= std::max<int64_t>(dims[i], 1);
            if (pick(0, 11) == 0) {
                strides[i] = 0;
            }
        }
        const auto size = int64_t(acl::element_size(dtype));
        const int64_t offset = pick(0, 3);
        const int slot = used_++ % kSlots;
        char* data = static_cast<char*>(memory_) + slot * kSlot + 64;
        if ((elements + offset) * size > kSlot - 128) {
            dims.clear();
            strides.clear();
            elements = 1;
        }
        std::vector<int64_t> storage{elements + offset};
        aclTensor* t = aclCreateTensor(dims.data(), dims.size(), dtype, strides.data(), offset, 2,
                                       storage.data(), 1, data);
        REQUIRE(t != nullptr);
        owned_.push(t);
        extents_[slot] = std::max(extents_[slot], 64 + (elements + offset) * size);
        return t;
    }

    void check_guards() {
        const auto* bytes = static_cast<const unsigned char*>(memory_);
        for (int slot = 0; slot < kSlots; slot++) {
            const int64_t end = extents_[slot];
            const int64_t at = slot * kSlot;
            const int64_t inside = end > 0 ? 64 : 0;
            CHECK(std::memcmp(bytes + at, shadow_.data() + at, static_cast<size_t>(inside)) == 0);
            CHECK(std::memcmp(bytes + at + end, shadow_.data() + at + end,
                              static_cast<size_t>(kSlot - end)) == 0);
        }
    }

    void release_all() {
        owned_.release();
        for (auto* l : lists_) aclDestroyTensorList(l);
        for (auto* s : scalars_) aclDestroyScalar(s);
        for (auto* a : arrays_) aclDestroyIntArray(a);
        lists_.clear();
        scalars_.clear();
        arrays_.clear();
        extents_.clear();
        used_ = 0;
    }

    struct Owned {
        std::vector<aclTensor*> tensors;
        void push(aclTensor* t) { tensors.push_back(t); }
        void clear_last(size_t n) { tensors.resize(tensors.size() - n); }  // a list owns its tensors
        void release() {
            for (auto* t : tensors) aclDestroyTensor(t);
            tensors.clear();
        }
        ~Owned() { release(); }
    };

    std::mt19937_64 random_;
    void* memory_ = nullptr;
    aclrtStream stream_ = nullptr;
    std::vector<unsigned char> shadow_;
    Owned owned_;
    std::vector<aclTensorList*> lists_;
    std::vector<aclScalar*> scalars_;
    std::vector<aclIntArray*> arrays_;
    std::map<int, int64_t> extents_;
    int used_ = 0;
    std::vector<int64_t> base_;
    int32_t dtype_ = 0;
    bool attention_ = false, plain_ = false;
    std::string layout_;
    int64_t heads_ = 1;
    aclnnStatus last_ = 0;
};

}  // namespace

TEST_CASE("no arguments of the right kinds crash an operator") {
    REQUIRE(aclInit(nullptr) == 0);
    REQUIRE(aclrtSetDevice(0) == 0);
    const uint64_t rounds = setting("FLEXNPU_FUZZ_ROUNDS", 150);
    Fuzzer fuzzer(setting("FLEXNPU_FUZZ_SEED", 1));
    int with_body = 0, ever_accepted = 0;
    std::string never;
    for (uint32_t op = 0; op < api::kOpCount; op++) {
        const std::string name = api::kOps[op].name;
        CAPTURE(name);
        if (name.ends_with("GetMax")) {  // a question about another row's workspace, with no call to launch
            REQUIRE(dlsym(RTLD_DEFAULT, (name + "WorkspaceSize").c_str()) != nullptr);
            continue;
        }
        void* first = dlsym(RTLD_DEFAULT, (name + "GetWorkspaceSize").c_str());
        void* second = dlsym(RTLD_DEFAULT, name.c_str());
        REQUIRE(first != nullptr);
        REQUIRE(second != nullptr);
        uint64_t accepted = 0;
        bool body = true;
        for (uint64_t round = 0; round < rounds && body; round++) {
            accepted += fuzzer.once(op, first, second);
            body = fuzzer.last() != acl::OP_NOT_FOUND;
        }
        with_body += body;
        ever_accepted += accepted > 0;
        if (body && accepted == 0) {
            never += " " + name;
        }
    }
    MESSAGE(with_body, " operators with a body, ", ever_accepted,
            " ran at least once; never accepted:", never);
    CHECK(with_body > 300);
    // Most rows must really run, or this test says nothing.
    CHECK(ever_accepted * 10 > with_body * 8);
}

int main(int argc, char** argv) {
    setenv("FLEXNPU_EMU_PROFILE", FLEXNPU_TEST_PROFILE, 1);
    setenv("FLEXNPU_EMU_MACHINE", ("fuzz-" + std::to_string(getpid())).c_str(), 0);
    doctest::Context context(argc, argv);
    return context.run();
}
