#include "fuzz/generate.hpp"

#include <algorithm>

#include "flexnpu/api/hccl_types.hpp"
#include "fuzz/cases.hpp"

namespace flexnpu::test {

using wire::Kind;
using wire::Place;

namespace {

// What stands before a message in a script.
void append_head(Bytes& out, Kind kind, size_t bytes, uint32_t flags) {
    append(out, uint16_t(kind));
    append(out, uint16_t(bytes / 8));
    append(out, flags);
}

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
        std::find_if(cases().begin(), cases().end(), [&](const Case& c) { return c.kind == kind; });
    if (found != cases().end()) {
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
    const bool makes = kind == Kind::malloc || kind == Kind::create_stream || found == cases().end() ||
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
