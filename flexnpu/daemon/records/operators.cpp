#include "flexnpu/daemon/records/operators.hpp"

#include <algorithm>
#include <cstring>

#include "flexnpu/daemon/graphs.hpp"
#include "flexnpu/wire/futex.hpp"

namespace flexnpu::daemon {

namespace {

constexpr uint32_t kMaxShapeNumbers = 1 << 15;
// Launches kept for a client that may ask for their outputs' shapes; one that asks later is told that they
// are unknown.
constexpr size_t kMaxLate = 1024;
// Failed definitions kept for the launches behind them.
constexpr size_t kMaxBadShapes = 1024;

}  // namespace

void OperatorRecords::define_shape(Session& s, Payload p, const Reply& reply) {
    wire::DefineShape d;
    Payload rest;
    if (!take(p, &d, &rest) || rest.size() != size_t(d.addresses) * 8 + d.meta_bytes ||
        uint32_t(d.shape) >= kMaxShapeNumbers) {
        return malformed(s, reply, "definition of an operator's shape");
    }
    int32_t error = 0;
    std::string message;
    auto shape =
        Shape::make(vendor_, d.op, rest.subspan(size_t(d.addresses) * 8), d.addresses, &error, &message);
    if (!reply.request) {
        // Nobody waits: the launch will check the addresses, make the first call, and report what is wrong.
        if (shape) return keep_shape(s, d.shape, std::move(shape));
        if (s.bad_shapes.size() >= kMaxBadShapes) s.bad_shapes.clear();
        s.bad_shapes[d.shape] = {error, std::move(message)};
        return;
    }
    if (!shape) return refuse(s, reply, error, message);
    std::vector<uint64_t> addresses(d.addresses);
    if (d.addresses) std::memcpy(addresses.data(), rest.data(), addresses.size() * 8);
    const size_t foreign = s.memory.first_foreign(
        addresses.size(), [&](size_t i) { return MemoryMap::Span{addresses[i], shape->extent(i)}; });
    if (foreign != addresses.size()) {
        return refuse(s, reply, acl::RT_PARAM_INVALID,
                      std::string(shape->name()) + ": tensor " + std::to_string(foreign) + " at " +
                          hex(addresses[foreign]) + " (" + std::to_string(shape->extent(foreign)) +
                          " bytes) is not in memory of this process");
    }
    if (!s.first_calls.quick(shape->key())) {
        // The shape is in no table before: no launch can find it.
        return first_calls_.begin(
            s, shape, std::move(addresses),
            [this, s = &s, shape, keep = d.shape, reply](const Failure& failure, uint64_t workspace) {
                if (failure.code) return reply.fail(failure);
                keep_shape(*s, keep, shape);
                reply.ok(workspace);
            });
    }
    uint64_t workspace = 0;
    aclOpExecutor* executor = nullptr;
    const uint64_t began = wire::now_ns();
    const int32_t e = shape->first(addresses, &workspace, &executor);
    s.first_calls.learn_inline(shape->key(), wire::now_ns() - began);
    if (e) return reply.fail({e, vendor_.message(shape->name(), e)});
    first_calls_.drop_executor(executor);
    shape->first_call = Shape::FirstCall::over;
    keep_shape(s, d.shape, std::move(shape));
    reply.ok(workspace);
}

// Under the client's number for it, whose index has been checked.
void OperatorRecords::keep_shape(Session& s, uint64_t number, std::shared_ptr<Shape> shape) {
    const uint32_t index = uint32_t(number);
    shape->number = number;
    if (s.shapes.size() <= index)
        s.shapes.resize(std::max<size_t>(index + 1, std::min<size_t>(kMaxShapeNumbers, s.shapes.size() * 2)));
    s.shapes[index] = std::move(shape);
    shapes_++;
}

void OperatorRecords::launch(Session& s, Payload p, wire::StepWord step) {
    wire::Launch l;
    Payload rest;
    if (!take(p, &l, &rest) || rest.size() != size_t(l.count) * 8) {
        return malformed(s);
    }
    Lane* lane = lane_of(s, l.stream);
    if (!lane) return refuse_later(s, nullptr, acl::RT_INVALID_HANDLE, "");
    const uint32_t index = uint32_t(l.shape);
    std::shared_ptr<Shape> shape = index < s.shapes.size() ? s.shapes[index] : nullptr;
    if (!shape || shape->number != l.shape || shape->op() != l.op || shape->addresses() != l.count ||
        !vendor_.second(l.op)) {
        if (auto bad = s.bad_shapes.find(l.shape); bad != s.bad_shapes.end())
            return refuse_later(s, lane, bad->second.code, bad->second.message);
        return refuse_later(s, lane, acl::INVALID_PARAM,
                            "FlexNPU: a launch of an operator that was never defined");
    }
    if (l.late) {
        // The next launch of this shape must not write over what this one leaves in its objects.
        int32_t error = 0;
        std::string message;
        const bool over = shape->first_call == Shape::FirstCall::over;
        shape = shape->clone(&error, &message);
        if (!shape) return refuse_later(s, lane, error, std::move(message));
        if (over) shape->first_call = Shape::FirstCall::over;
        s.late.emplace_back(l.late, shape);
        if (s.late.size() > kMaxLate) s.late.pop_front();
    }
    auto item = lanes_.spare_item();
    item->work = LaunchItem{l.workspace, l.workspace_size};
    item->step = step;
    item->addresses.resize(l.count);
    if (l.count) std::memcpy(item->addresses.data(), rest.data(), rest.size());
    // The workspace comes last.
    const size_t foreign = s.memory.first_foreign(l.count + 1, [&](size_t i) {
        return i < l.count ? MemoryMap::Span{item->addresses[i], shape->extent(i)}
                           : MemoryMap::Span{l.workspace, l.workspace_size};
    });
    if (foreign != size_t(l.count) + 1) {
        const bool ws = foreign == l.count;
        return refuse_later(s, lane, acl::RT_PARAM_INVALID,
                            std::string(shape->name()) + ": " +
                                (ws ? "the workspace" : "tensor " + std::to_string(foreign)) + " at " +
                                hex(ws ? l.workspace : item->addresses[foreign]) +
                                " is not in memory of this process");
    }
    if (Footprint* f = footprint_of(*lane)) {
        for (size_t i = 0; i < l.count; i++) f->add(s.memory, item->addresses[i], shape->extent(i));
        f->add(s.memory, l.workspace, l.workspace_size);
        if (!lane->update) lane->capture->us += gate_.estimate(shape->key());
    }
    item->shape = std::move(shape);
    push(*lane, std::move(item));
}

void OperatorRecords::drop_shape(Session& s, Payload p, const Reply& reply) {
    wire::DropShape d;
    if (!taken(s, p, &d, reply, "end of an operator's shape")) return;
    const uint32_t index = uint32_t(d.shape);
    if (index < s.shapes.size() && s.shapes[index] && s.shapes[index]->number == d.shape)
        s.shapes[index].reset();
}

void OperatorRecords::late_dims(Session& s, Payload p, const Reply& reply) {
    wire::LateDims l;
    if (!taken(s, p, &l, reply, "question about outputs")) return;
    auto it =
        std::find_if(s.late.begin(), s.late.end(), [&](const auto& entry) { return entry.first == l.late; });
    if (it == s.late.end()) return refuse(s, reply, acl::INVALID_PARAM, "FlexNPU: no such launch");
    const std::vector<uint64_t> dims = it->second->output_dims(wire::kReplyWords);
    s.late.erase(it);
    reply.send(0, "", dims.data(), dims.size());
}

}  // namespace flexnpu::daemon
