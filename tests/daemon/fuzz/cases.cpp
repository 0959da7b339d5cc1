#include "fuzz/cases.hpp"

#include "flexnpu/api/hccl_types.hpp"

namespace flexnpu::test {

using wire::Kind;
using wire::Place;

namespace {

void event_op(Generator& g) { g.add(wire::EventOp{g.event(), g.stream(), int64_t(g.below(3))}); }
void stream_op(Generator& g) { g.add(wire::StreamOp{g.stream(), int64_t(g.below(3)) - (g.plain ? 0 : 1)}); }

void launch(Generator& g) {
    const uint64_t shape = g.shape();
    const Generator::Defined& d = g.defined[shape & 15];
    const uint64_t n = d.known ? d.addresses : g.below(4);
    g.add(wire::Launch{g.stream(), g.below(8) ? named(kMemory) : g.memory(), g.below(100), shape, d.op,
                       uint32_t(n), g.plain || g.below(4) ? 0 : g.below(10)});
    for (uint64_t i = 0; i < n; i++) g.add(g.below(32) ? named(kMemory) : g.memory());
}

void define_shape(Generator& g) {
    const uint32_t op = uint32_t(g.below(api::kOpCount));
    size_t n = 0;
    const Bytes meta = g.meta(op, &n);
    const uint64_t shape = g.shape();
    g.defined[shape & 15] = {op, n, true};
    g.add(wire::DefineShape{shape, op, uint32_t(n), uint32_t(meta.size()), 0});
    for (size_t i = 0; i < n; i++) g.add(named(kMemory));
    g.payload().insert(g.payload().end(), meta.begin(), meta.end());
}

void copy(Generator& g) {
    wire::Copy c{g.stream(),           g.memory(),          g.memory(),           1 + g.below(64),
                 Place::device,        Place::device,       uint32_t(g.below(3)), uint32_t(g.below(70)),
                 uint32_t(g.below(4)), uint32_t(g.below(2))};
    switch (g.below(6)) {
        case 0: c.from_place = Place::inline_data; break;
        case 1: c.to_place = Place::inline_data, c.now = 1; break;
        case 2:
            c.from_place = Place::staging, c.from = g.below(wire::kBlocks * wire::kBlockBytes + 10);
            break;
        case 3: c.to_place = Place::staging, c.to = g.below(wire::kBlocks * wire::kBlockBytes + 10); break;
        case 4: c.to_place = Place(g.below(5)), c.from_place = Place(g.below(5)), c.bytes = g.size(); break;
        default: break;
    }
    g.add(c);
    if (c.from_place == Place::inline_data)
        g.payload().resize(g.payload().size() + wire::round8(std::min<uint64_t>(c.bytes, 8192)));
}

void forward(Generator& g) {
    const uint64_t n = g.below(5);
    g.add(wire::Forward{uint32_t(g.below(api::FN_COUNT)), uint32_t(n), uint32_t(g.below(40)), 0});
    for (uint64_t i = 0; i < n; i++) g.add(g.below(2) ? g.below(3) : g.answer());
}

void communicator(Generator& g) {
    wire::Communicator c{};
    c.call = wire::Communicator::Call(g.below(wire::Communicator::count_ + 1));
    c.communicator = g.answer();
    c.id = g.below(3) ? g.below(5000) : g.size();
    c.ranks = uint32_t(g.below(6));
    c.rank = uint32_t(g.below(4));
    const bool makes = c.call == wire::Communicator::initialise, splits = c.call == wire::Communicator::split;
    c.config = (makes || splits) && !g.below(3) ? uint32_t(160 + 8 * g.below(3)) : 0;
    g.add(c);
    // What follows is padded together with the head, whose own size is a multiple of 8.
    const size_t before = makes ? sizeof(HcclRootInfo) : splits ? c.ranks * 4 : 0, at = g.payload().size();
    g.payload().resize(at + wire::round8(before + c.config));
    if (c.config && g.below(4)) std::memcpy(g.payload().data() + at + before, &c.config, sizeof(c.config));
}

}  // namespace

void collective(Generator& g) {
    wire::Collective c{};
    c.communicator = g.answer();
    c.stream = g.stream();
    c.send = g.memory();
    c.recv = g.memory();
    c.send_count = g.below(20) ? g.below(64) : g.size();
    c.recv_count = g.below(20) ? g.below(64) : g.size();
    c.send_type = int32_t(g.below(13));
    c.recv_type = int32_t(g.below(13));
    c.reduction = int32_t(g.below(5));
    c.peer = uint32_t(g.below(4));
    c.of = wire::Collective::Of(g.below(wire::Collective::count_ + 1));
    c.words = uint32_t(g.below(3) ? 4 * g.below(5) : g.below(20));
    g.add(c);
    for (uint32_t i = 0; i < c.words; i++) g.add(g.below(4) ? g.below(40) : g.memory());
}

namespace {

void kernel(Generator& g) {
    wire::Kernel k{};
    k.call = uint32_t(g.below(wire::Kernel::count_ + 1));
    k.handle = g.answer();
    k.bytes = g.below(20) ? 1 + g.below(64) : g.size();
    k.count = k.call == wire::Kernel::load ? uint32_t(g.below(3)) : 0;
    g.add(k);
    const bool bytes = k.call == wire::Kernel::data || k.call == wire::Kernel::function;
    g.payload().resize(
        g.payload().size() + wire::round8(bytes ? std::min<uint64_t>(k.bytes, 4096) : k.count * 20),
        uint8_t(1 + g.below(9)));
}

}  // namespace

void launch_kernel(Generator& g) {
    const bool device = !g.below(4);
    const wire::LaunchKernel l{
        g.stream(),           g.answer(),           device ? g.memory() : 0,           8 * g.below(20),
        uint32_t(g.below(5)), uint32_t(g.below(3)), device ? 0 : uint32_t(g.below(3)), 0};
    g.add(l);
    const size_t at = g.payload().size();
    g.payload().resize(at + wire::round8(l.attributes * 20 + l.place_holders * 8 + (device ? 0 : l.bytes)),
                       0);
    for (uint32_t i = 0; i < l.attributes; i++) g.payload()[at + i * 20] = uint8_t(1 + g.below(5));
}

namespace {

void graph_op(Generator& g) { g.add(wire::GraphOp{g.answer(), g.stream()}); }

// Kinds of records, each with how an honest one looks. One that is not here is made of words of all sorts.
const Case kAll[] = {
    {Kind::launch, launch},
    {Kind::define_shape, define_shape},
    {Kind::copy, copy},
    {Kind::forward, forward},
    {Kind::memset,
     [](Generator& g) {
         g.add(wire::Memset{g.stream(), g.memory(), 64, g.below(65), 1, uint32_t(g.below(2))});
     }},
    {Kind::record_event, event_op},
    {Kind::wait_event, event_op},
    {Kind::reset_event, event_op},
    {Kind::sync_event, event_op},
    {Kind::query_event, event_op},
    {Kind::event_timestamp, event_op},
    {Kind::destroy_event,
     [](Generator& g) { g.add(wire::EventOp{g.below(20) ? g.answer() : g.event(), 0, 0}); }},
    {Kind::event_elapsed, [](Generator& g) { g.add(wire::EventPair{g.event(), g.event()}); }},
    {Kind::drop_shape, [](Generator& g) { g.add(wire::DropShape{g.shape()}); }},
    {Kind::malloc, [](Generator& g) { g.add(wire::Malloc{g.size(), 0, uint32_t(g.below(2))}); }},
    {Kind::free, [](Generator& g) { g.add(wire::Free{g.below(50) ? g.answer() : g.memory(), 0}); }},
    {Kind::mem_info, [](Generator& g) { g.add(wire::MemInfo{int32_t(g.below(6)), 0}); }},
    {Kind::create_event,
     [](Generator& g) {
         g.add(wire::CreateEvent{wire::make_handle(wire::HandleKind::event, uint32_t(g.below(100)), 1),
                                 uint32_t(g.below(16)), uint32_t(g.below(2))});
     }},
    {Kind::create_stream,
     [](Generator& g) { g.add(wire::CreateStream{uint32_t(g.below(8)), uint32_t(g.below(16))}); }},
    {Kind::destroy_stream,
     [](Generator& g) { g.add(wire::StreamOp{g.below(50) ? g.answer() : g.stream(), -1}); }},
    {Kind::sync_stream, stream_op},
    {Kind::query_stream, stream_op},
    {Kind::abort_stream, stream_op},
    {Kind::abort_device, stream_op},
    {Kind::stream_id, stream_op},
    {Kind::sync_device, stream_op},
    {Kind::host_func,
     [](Generator& g) { g.add(wire::HostFunc{g.stream(), g.below(8), uint32_t(g.below(20) == 0), 0}); }},
    {Kind::late_dims, [](Generator& g) { g.add(wire::LateDims{g.below(10)}); }},
    {Kind::text,
     [](Generator& g) {
         g.add(wire::Text{uint32_t(g.below(5)), int32_t(g.below(12)), 5, 0}).add(uint64_t(0x6f6c6c6568));
     }},
    {Kind::share,
     [](Generator& g) {
         wire::Share x{};
         x.call = uint32_t(g.below(8));
         x.count = uint32_t(g.below(4));
         x.address = g.answer();
         x.bytes = 1 + g.below(4096);
         x.flags = g.below(2);
         x.handle = g.answer();
         const uint64_t part = g.answer();
         std::memcpy(x.key, &part, sizeof(part));
         g.add(x);
     }},
    {Kind::communicator, communicator},
    {Kind::collective, collective},
    {Kind::kernel, kernel},
    {Kind::launch_kernel, launch_kernel},
    {Kind::capture_begin, stream_op},
    {Kind::capture_end,
     [](Generator& g) { g.add(wire::CaptureEnd{g.stream(), uint64_t(!g.plain && !g.below(8))}); }},
    {Kind::capture_info, graph_op},
    {Kind::group_begin, stream_op},
    {Kind::group_end, stream_op},
    {Kind::update_begin, graph_op},
    {Kind::update_end, stream_op},
    {Kind::launch_graph, graph_op},
    {Kind::destroy_graph, graph_op},
    {Kind::graph_text, [](Generator& g) { g.add(wire::GraphText{g.answer(), g.below(3), g.below(3)}); }},
    {Kind::control_graph,
     [](Generator& g) { g.add(wire::ControlGraph{g.answer(), uint32_t(g.below(5)), 0}); }},
    {Kind::value_op,
     [](Generator& g) {
         g.add(wire::ValueOp{g.stream(), g.memory(), g.below(8), uint32_t(g.below(4)), uint32_t(g.below(2))});
     }},
    {Kind::virtual_memory,
     [](Generator& g) {
         g.add(wire::VirtualMemory{uint32_t(g.below(10)), int32_t(g.below(3)), g.answer(),
                                   g.below(4) ? uint64_t(2) << 20 : g.size(), g.below(3), g.answer(),
                                   g.below(3), int32_t(g.below(4)), int32_t(g.below(3)), int32_t(g.below(3)),
                                   0});
     }},
};

}  // namespace

std::span<const Case> cases() { return kAll; }

}  // namespace flexnpu::test
