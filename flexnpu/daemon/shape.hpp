// An operator with all its metadata, as a client has defined it: the vendor's objects are built once, a
// launch sets addresses.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flexnpu/daemon/vendor.hpp"
#include "flexnpu/gate/gate.hpp"
#include "flexnpu/wire/meta.hpp"

namespace flexnpu::daemon {

class Shape {
public:
    // Decodes untrusted metadata. nullptr with *error and *message set when it is malformed, or names an
    // operator that the vendor lacks.
    static std::shared_ptr<Shape> make(Vendor& vendor, uint32_t op, std::span<const uint8_t> meta,
                                       size_t addresses, int32_t* error, std::string* message);
    ~Shape();
    Shape(const Shape&) = delete;
    Shape& operator=(const Shape&) = delete;

    uint32_t op() const { return op_; }
    const char* name() const { return api::kOps[op_].name; }
    gate::OpKey key() const { return key_; }
    size_t addresses() const { return extents_.size(); }
    // Bytes that the i-th tensor may touch from its address on.
    uint64_t extent(size_t i) const { return extents_[i].bytes; }

    // The same again, with objects of its own.
    std::shared_ptr<Shape> clone(int32_t* error, std::string* message) const;
    // Shapes of the outputs as the last launch has left them: for each, the number of dims, then the dims.
    // Words that do not fit are left out.
    std::vector<uint64_t> output_dims(size_t most) const;

    // The vendor's first call with these addresses. An executor is good for one second call.
    int32_t first(std::span<const uint64_t> addresses, uint64_t* workspace, aclOpExecutor** executor);

    uint64_t number = 0;  // the client's: index | generation << 32
    // Whether the vendor has been asked about it, see first_calls.hpp. The dispatcher's.
    enum class FirstCall : uint8_t { none, under_way, credited, over };
    FirstCall first_call = FirstCall::none;
    std::vector<std::pair<uint32_t, uint64_t>> waiting;  // lanes, with the ticket of the item that waits

private:
    Shape(Vendor& vendor, uint32_t op) : vendor_(vendor), op_(op) {}
    bool build(const std::vector<wire::ArgMeta>& args, std::string* message);
    aclTensor* tensor(const wire::TensorMeta& meta, gate::ShapeBucket* bucket, std::string* message);

    Vendor& vendor_;
    uint32_t op_;
    gate::OpKey key_;
    std::vector<wire::Extent> extents_;
    std::vector<aclTensor*> tensors_;  // in the order of addresses; owned unless in a list
    std::vector<bool> in_list_;
    std::vector<AclnnArg> args_;
    std::vector<std::string> texts_;
    std::vector<uint8_t> meta_;
};

}  // namespace flexnpu::daemon
