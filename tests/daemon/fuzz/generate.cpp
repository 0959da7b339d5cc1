#include "fuzz/generate.hpp"

#include "flexnpu/api/hccl_types.hpp"

namespace flexnpu::test {

using wire::Kind;
using wire::Place;

namespace {

using Make = void (*)(Generator&);
struct Case {
    Kind kind;
    Make make;
};

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

void graph_op(Generator& g) { g.add(wire::GraphOp{g.answer(), g.stream()}); }

// What stands before a message in a script.
void append_head(Bytes& out, Kind kind, size_t bytes, uint32_t flags) {
    append(out, uint16_t(kind));
    append(out, uint16_t(bytes / 8));
    append(out, flags);
}

// Kinds of records, each with how an honest one looks. One that is not here is made of words of all sorts.
constexpr Case kCases[] = {
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
         g.add(wire::VirtualMemory{uint32_t(g.below(8)), int32_t(g.below(3)), g.answer(),
                                   g.below(4) ? uint64_t(2) << 20 : g.size(), g.below(3), g.answer(),
                                   g.below(3), int32_t(g.below(4)), int32_t(g.below(3)), int32_t(g.below(3)),
                                   0});
     }},
};

}  // namespace

uint64_t Generator::interesting() {
    static constexpr uint64_t values[] = {
        0,     1,         7, 8, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 0x8000000000000000,
        ~0ull, 1ull << 40};
    return values[below(std::size(values))] + below(3) - 1;
}

Bytes Generator::meta(uint32_t op, size_t* addresses) {
    wire::MetaWriter w;
    *addresses = 0;
    const int64_t dims[] = {int64_t(below(5)), int64_t(1 + below(8))}, strides[] = {dims[1], 1};
    auto tensor = [&](char kind) {
        w.tensor(kind, int(below(13)), int(below(3)), int64_t(below(3)), dims, strides, dims);
        ++*addresses;
    };
    auto scalar = [&] {
        const unsigned char value[16] = {1};
        w.head('S', true, int(below(10)), 0, 0);
        w.raw(value, 16);
    };
    for (const char* k = api::kOps[op].kinds; *k; k++) {
        const uint64_t word = below(4);
        const double real = 0.5;
        switch (*k) {
            case 'T':
            case 't': tensor(*k); break;
            case 'L':
            case 'l':
                w.head(*k, true, 0, 0, 2);
                tensor('T');
                tensor('T');
                break;
            case 'S': scalar(); break;
            case 'C':
                w.head('C', true, 0, 0, 2);
                scalar();
                scalar();
                break;
            case 'I': w.array('I', dims, 2, 8); break;
            case 'F': w.array('F', dims, 3, 4); break;
            case 'B': w.array('B', "\1\0\1", 3, 1); break;
            case 's': w.array('s', "name", 4, 1); break;
            case 'd':
            case 'f': w.word(*k, &real); break;
            default: w.word(*k, &word); break;
        }
    }
    const auto b = w.bytes();
    return {b.begin(), b.end()};
}

void Generator::message(Bytes& out, Kind kind) {
    payload_.clear();
    const auto found =
        std::find_if(std::begin(kCases), std::end(kCases), [&](const Case& c) { return c.kind == kind; });
    if (found != std::end(kCases)) {
        found->make(*this);
    } else {
        for (uint64_t n = 1 + below(12); n > 0; n--) {
            const uint64_t words[] = {memory(), stream(),      event(), answer(),
                                      below(8), interesting(), size(),  0};
            add(words[below(std::size(words))]);
        }
    }
    uint8_t flags = 0;
    const bool asynchronous =
        kind == Kind::launch || kind == Kind::host_func || kind == Kind::drop_shape ||
        kind == Kind::record_event || kind == Kind::wait_event || kind == Kind::reset_event ||
        kind == Kind::launch_graph || kind == Kind::update_begin || kind == Kind::update_end ||
        kind == Kind::value_op || kind == Kind::collective || kind == Kind::launch_kernel;
    if (asynchronous ? !plain && !below(50) : plain || below(50)) flags |= kAsk;
    // What makes an object says which, for others to name.
    const bool makes = kind == Kind::malloc || kind == Kind::create_stream || found == std::end(kCases) ||
                       kind == Kind::virtual_memory || kind == Kind::share || kind == Kind::communicator ||
                       kind == Kind::kernel || kind == Kind::capture_begin || kind == Kind::group_end;
    if ((flags & kAsk) && makes && (plain || !below(8))) flags |= kWait;
    // What is broken in a shape's definition breaks all launches of it.
    if (!plain && below(8) < (kind == Kind::define_shape ? 2 : 6)) {
        mutated_++;
        mutate_bytes(payload_.data(), payload_.size());
        if (!below(8)) payload_.resize(payload_.size() / 8 * below(9) / 8 * 8);
        if (!below(16)) payload_.resize(payload_.size() + 8 * below(32), uint8_t(rng_()));
        // Seldom, for each may end the session.
        if (!below(1500)) {
            flags |= kHeader;
            Bytes header;
            append(header, wire::Record{uint32_t(sizeof(wire::Record) + payload_.size()), kind, 0,
                                        uint32_t(below(100)), 0, below(1 << 20)});
            mutate_bytes(header.data(), header.size());
            payload_.insert(payload_.begin(), header.begin(), header.end());
        } else if (!below(4000)) {
            flags |= kHead;
        } else if (!below(2000)) {
            flags |= kPage;
        }
    }
    append_head(out, kind, payload_.size(), flags);
    out.insert(out.end(), payload_.begin(), payload_.begin() + ptrdiff_t(payload_.size() / 8 * 8));
}

// One that names the last answer at this place, mutated or not.
void Generator::naming(Bytes& out, Kind kind, void (*make)(Generator&), size_t at) {
    payload_.clear();
    make(*this);
    const uint64_t handle = named(kAnswer);
    std::memcpy(payload_.data() + at, &handle, sizeof(handle));
    if (!plain && below(2)) {
        mutated_++;
        mutate_bytes(payload_.data(), payload_.size());
    }
    append_head(out, kind, payload_.size(), 0);
    out.insert(out.end(), payload_.begin(), payload_.end());
}

// A graph with a task group, replayed and updated. The answers that its records name are the graph's and the
// group's handles.
void Generator::graph(Bytes& out) {
    // One that breaks is no graph.
    const bool before = std::exchange(plain, plain || below(4));
    for (Kind k :
         {Kind::capture_begin, Kind::memset, Kind::group_begin, Kind::memset, Kind::group_end, Kind::memset})
        message(out, k);
    if (!below(4)) message(out, Kind::value_op);
    if (!below(4)) message(out, Kind::copy);
    if (!below(4)) message(out, Kind::launch);
    message(out, Kind::capture_end);
    plain = before;
    const auto say = [&out](Kind kind, Name what) {
        append_head(out, kind, sizeof(wire::GraphOp), 0);
        append(out, wire::GraphOp{named(what), named(kStream)});
    };
    for (uint64_t n = 1 + below(3); n > 0; n--) {
        say(Kind::launch_graph, kEarlierAnswer);
        say(Kind::update_begin, kAnswer);
        message(out, below(2) ? Kind::memset : Kind::launch);
        message(out, Kind::update_end);
    }
    if (below(2)) message(out, Kind::destroy_graph);
}

// A communicator and some of its operations, each mutated or not.
void Generator::ranks(Bytes& out) {
    constexpr size_t kQuestion = sizeof(wire::Communicator) + wire::round8(sizeof(HcclRootInfo));
    wire::Communicator c{};
    c.call = wire::Communicator::initialise;
    c.ranks = uint32_t(1 + below(4));
    c.rank = uint32_t(below(c.ranks));
    append_head(out, Kind::communicator, kQuestion, kAsk | kWait);
    const size_t at = out.size();
    append(out, c);
    out.resize(at + kQuestion);
    for (uint64_t n = 1 + below(6); n > 0; n--)
        naming(out, Kind::collective, collective, offsetof(wire::Collective, communicator));
    if (!below(4)) message(out, Kind::communicator);
}

// A binary, a function of it and some launches, each mutated or not.
void Generator::own_kernel(Bytes& out) {
    const auto say = [&out](const wire::Kernel& k, size_t more) {
        append_head(out, Kind::kernel, sizeof(k) + more, kAsk | kWait);
        append(out, k);
        out.resize(out.size() + more, 7);
    };
    const uint64_t bytes = 8 * (1 + below(64));
    say({wire::Kernel::begin, 0, 0, bytes}, 0);
    say({wire::Kernel::data, 0, 0, bytes}, bytes);
    say({wire::Kernel::load, 0, 0, 0}, 0);
    say({wire::Kernel::function_by_entry, 0, named(kAnswer), below(18)}, 0);
    for (uint64_t n = 1 + below(6); n > 0; n--)
        naming(out, Kind::launch_kernel, launch_kernel, offsetof(wire::LaunchKernel, function));
    if (below(2)) say({wire::Kernel::unload, 0, named(kEarlierAnswer), 0}, 0);
}

void Generator::request(Bytes& out) {
    Bytes b;
    wire::Request r{};
    r.magic = wire::kMagic;
    r.version = wire::kVersion;
    r.ask = wire::Ask(below(2) ? 2 + below(4) : below(8));
    r.question = uint32_t(below(4));
    r.region = uint32_t(below(4));
    // Large ones are slow, more so under a sanitizer.
    r.bytes = below(64) ? below(100'000) : interesting();
    r.table_hash = api::kTableHash;
    append(b, r);
    uint8_t flags = below(60) ? 0 : kFresh;
    if (!below(16)) flags |= kPassed;
    if (!plain && below(4)) {
        mutated_++;
        // The first bytes say who we are: with them changed nothing else is looked at.
        if (below(8))
            mutate_bytes(b.data() + 8, 8);
        else
            mutate_bytes(b.data(), below(8) ? 16 : b.size());
        if (!below(64)) b.resize(1 + below(250));
    }
    out.push_back(uint8_t(b.size()));
    out.push_back(flags);
    out.insert(out.end(), b.begin(), b.end());
}

Bytes Generator::script(Target target, size_t messages) {
    Bytes out{uint8_t(target)};
    if (target == kMeta) {
        const uint32_t op = uint32_t(below(api::kOpCount));
        size_t n = 0;
        append(out, uint16_t(op));
        Bytes m = meta(op, &n);
        if (!plain) mutate_bytes(m.data(), m.size());
        if (!plain && !below(4)) m.resize(below(m.size() + 16));
        out.insert(out.end(), m.begin(), m.end());
        return out;
    }
    for (size_t i = 0; i < messages; i++) {
        if (target == kSocket) {
            request(out);
            continue;
        }
        if (!below(64)) {
            graph(out);
            continue;
        }
        if (!below(128)) {
            ranks(out);
            continue;
        }
        if (!below(128)) {
            own_kernel(out);
            continue;
        }
        const uint64_t dice = below(8);
        const bool rare = dice == 0;
        Kind kind = dice < 3    ? Kind::launch
                    : dice == 3 ? Kind::define_shape
                                : Kind(below(uint64_t(Kind::count_) + (rare ? 2 : 0)));
        // What ends or stalls streams leaves nothing for the rest to do.
        if ((kind == Kind::abort_device || kind == Kind::abort_stream || kind == Kind::create_stream ||
             kind == Kind::host_func) &&
            below(20))
            kind = Kind::launch;
        // What is captured does not run.
        if (kind == Kind::capture_begin) kind = Kind::capture_end;
        message(out, kind);
    }
    return out;
}

void Generator::mutate_bytes(uint8_t* p, size_t size) {
    if (size == 0) return;
    for (uint64_t n = 1 + below(3); n > 0; n--) {
        const size_t at = below(size);
        switch (below(5)) {
            case 0: p[at] ^= uint8_t(1 << below(8)); break;
            case 1: p[at] = uint8_t(rng_()); break;
            case 2:
            case 3: {
                const size_t width = size_t(1) << below(4);
                const size_t aligned = at / width * width;
                if (aligned + width > size) break;
                const uint64_t v = interesting();
                std::memcpy(p + aligned, &v, width);
                break;
            }
            case 4: {
                const size_t aligned = at / 8 * 8;
                if (aligned + 8 > size) break;
                const uint64_t v = named(Name(1 + below(kNames - 1)), int32_t(below(2) ? 0 : below(1 << 17)));
                std::memcpy(p + aligned, &v, 8);
                break;
            }
        }
    }
}

void Generator::mutate(Bytes& script) {
    if (script.size() > 1) mutate_bytes(script.data() + 1, script.size() - 1);
}

std::vector<Bytes> Generator::honest_scripts() {
    std::vector<Bytes> all;
    plain = true;
    for (uint16_t k = 1; k < uint16_t(Kind::count_); k++) {
        Bytes out{uint8_t(kRing)};
        for (Kind before : {Kind::define_shape, Kind::launch, Kind::record_event}) message(out, before);
        for (int i = 0; i < 3; i++) message(out, Kind(k));
        message(out, Kind::sync_stream);
        all.push_back(std::move(out));
    }
    for (int i = 0; i < 3; i++) {
        Bytes out{uint8_t(kRing)};
        graph(out);
        message(out, Kind::sync_stream);
        all.push_back(std::move(out));
    }
    for (int i = 0; i < 4; i++) all.push_back(script(kSocket, 8));
    for (int i = 0; i < 8; i++) all.push_back(script(kMeta, 1));
    plain = false;
    return all;
}

}  // namespace flexnpu::test
