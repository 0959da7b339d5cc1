#include "fuzz/script.hpp"

#include <fcntl.h>

namespace flexnpu::test {

namespace {

// Messages before the next session begins.
constexpr uint64_t kSessionMessages = 4000;
constexpr uint64_t kConnectionMessages = 400;

constexpr uint64_t kShown = wire::kReplyWords * 8;

}  // namespace

Stage::Stage()
    : running_(std::make_unique<Running>()), victim_(std::make_unique<RawClient>(running_->path())) {
    victim_->open();
    theirs_ = furnish(*victim_);
    if (!theirs_.memory || !theirs_.stream || !theirs_.event) die("an honest client gets no objects");
    for (uint64_t i = 0; i < kShown; i++) pattern_.push_back(uint8_t(i * 7 + 1));
    Bytes p;
    append(p, wire::Copy{0, theirs_.memory, 0, kShown, wire::Place::device, wire::Place::inline_data, 0, 0, 0,
                         1});
    p.insert(p.end(), pattern_.begin(), pattern_.end());
    if (victim_->call(wire::Kind::copy, p) != 0) die("an honest client cannot write its memory");
    check_victim();
}

Stage::~Stage() = default;

void Stage::check_victim() {
    if (victim_->call(wire::Kind::sync_stream, wire::StreamOp{theirs_.stream, -1}) != 0)
        die("an honest client's stream suffers");
    if (victim_->call(wire::Kind::query_event, wire::EventOp{theirs_.event, 0, 0}) != 0)
        die("an honest client's event suffers");
    const wire::Copy out{0, 0, theirs_.memory, kShown, wire::Place::inline_data, wire::Place::device, 0, 0,
                         0, 1};
    if (victim_->call(wire::Kind::copy, out) != 0) die("an honest client cannot read its memory");
    if (std::memcmp(victim_->ring.header().data, pattern_.data(), kShown) != 0)
        die("an honest client's memory has changed");
}

uint64_t Stage::resolve(uint64_t word) const {
    if (word >> 40 != 0xf1e700) return word;
    const uint64_t values[kNames] = {
        0,           ours_.memory, ours_.stream, ours_.event, theirs_.memory, theirs_.stream, theirs_.event,
        answers_[0], answers_[1]};
    const uint8_t n = uint8_t(word);
    return n && n < kNames ? values[n] + uint64_t(int64_t(int32_t(word >> 8))) : word;
}

void Stage::play(const uint8_t* data, size_t size) {
    if (size == 0) return;
    count.scripts++;
    switch (data[0] % kTargets) {
        case kRing: return ring(data + 1, data + size);
        case kSocket: return socket(data + 1, data + size);
        default: return meta(data + 1, data + size);
    }
}

void Stage::ring(const uint8_t* p, const uint8_t* end) {
    if (!attacker_ || played_ > kSessionMessages) {
        attacker_.reset();
        attacker_ = std::make_unique<RawClient>(running_->path());
        attacker_->open();
        ours_ = furnish(*attacker_);
        played_ = 0;
        count.sessions++;
    }
    RawClient& a = *attacker_;
    while (end - p >= 8) {
        uint16_t kind, words;
        std::memcpy(&kind, p, 2);
        std::memcpy(&words, p + 2, 2);
        const uint8_t flags = p[4];
        p += 8;
        const size_t n =
            std::min({size_t(words), size_t(end - p) / 8, (wire::kMaxRecord - sizeof(wire::Record)) / 8});
        Bytes payload(n * 8);
        for (size_t i = 0; i < n; i++) {
            uint64_t w;
            std::memcpy(&w, p + 8 * i, 8);
            w = resolve(w);
            std::memcpy(payload.data() + 8 * i, &w, 8);
        }
        p += n * 8;
        count.ring++;
        played_++;
        bool sent = true;
        const uint32_t request = flags & (kAsk | kWait) ? ++a.request | 0x40000000u : 0;
        if (flags & kHead) {
            if (payload.size() >= 8)
                std::memcpy(static_cast<void*>(&a.ring.header().head), payload.data(), 8);
            a.knock();
            sent = a.answered(0xffffffff, 1'000'000) || a.alive();
            a.ring.header().head.store(a.head);
        } else {
            if ((flags & kPage) && !payload.empty()) {
                std::memcpy(static_cast<void*>(&a.ring.header().tail), payload.data(),
                            std::min<size_t>(payload.size(), wire::kRingHeaderBytes / 2));
                a.ring.header().head.store(a.head);
                std::memcpy(static_cast<void*>(a.page), payload.data(),
                            std::min<size_t>(payload.size(), sizeof(wire::SessionPage)));
                a.page->doze.store(wire::kAsleep);
                // What says how much room there is has been written over: let the daemon say it again.
                a.ring.header().tail.store(a.head);
            }
            Bytes b;
            if (!(flags & kHeader))
                append(b, wire::Record{uint32_t(sizeof(wire::Record) + payload.size()), wire::Kind(kind), 0,
                                       request, 0, ++a.sequence});
            b.insert(b.end(), payload.begin(), payload.end());
            if (b.size() < sizeof(wire::Record)) b.resize(sizeof(wire::Record));
            if (b.size() > wire::kMaxRecord) b.resize(wire::kMaxRecord);
            sent = a.put(b);
        }
        if (!sent) {
            attacker_.reset();
            return;
        }
        if ((flags & kWait) && a.answered(request, 2'000'000) && a.ring.header().status == 0) {
            answers_[1] = answers_[0];
            answers_[0] = a.word();
        }
    }
}

void Stage::socket(const uint8_t* p, const uint8_t* end) {
    static const daemon::Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    while (end - p >= 2) {
        const size_t n = std::min<size_t>(p[0], size_t(end - p - 2));
        const uint8_t flags = p[1];
        p += 2;
        if (!caller_ || called_ > kConnectionMessages || ((flags & kFresh) && called_ > 20)) {
            caller_ = std::make_unique<RawClient>(running_->path());
            called_ = 0;
        }
        count.socket++;
        called_++;
        bool sent = n > 0 && caller_->send_raw(p, n, flags & kPassed ? null.get() : -1);
        p += n;
        wire::Answer answer;
        std::vector<daemon::Fd> fds;
        if (!sent || !caller_->receive(&answer, &fds)) caller_.reset();
    }
}

void Stage::meta(const uint8_t* p, const uint8_t* end) {
    if (end - p < 2) return;
    uint16_t op;
    std::memcpy(&op, p, 2);
    static std::vector<wire::ArgMeta> args;
    count.meta++;
    // The bytes are copied to where a sanitizer sees the first one beyond.
    const Bytes bytes(p + 2, end);
    if (!wire::decode_meta(bytes, api::kOps[op % api::kOpCount].kinds, &args)) return;
    for (const wire::ArgMeta& a : args) {
        for (const wire::TensorMeta& t : a.tensors) {
            wire::Extent e;
            for (uint32_t bits : {1u, 4u, 8u, 64u, 128u}) {
                if (t.present && wire::extent_of(t, bits, op & 1, &e) && e.bytes >> 62)
                    die("an extent overflows");
            }
        }
    }
}

void Stage::settle() {
    if (!attacker_) return;
    const uint64_t until = wire::now_ns() + 20'000'000'000ull;
    while (attacker_->ring.header().tail.load() != attacker_->head && attacker_->alive()) {
        if (wire::now_ns() > until) die("the daemon does not read the ring");
        attacker_->knock();
        usleep(5);
    }
    if (!attacker_->alive()) attacker_.reset();
}

}  // namespace flexnpu::test
