// What the fuzzer plays to the daemon, as bytes: the form of the corpus, of libFuzzer's inputs and of what is
// left of a crash.
//
//   byte 0       which decoder: ring, socket or metadata
//   ring         messages: kind (2 bytes), words (2), flags (1), 3 unused, then the payload's words
//   socket       messages: length (1), flags (1), then the bytes of a request
//   metadata     operator (2), then its metadata
//
// Handles and addresses differ from run to run: a word of a ring's payload may name one instead, see named().
#pragma once

#include <memory>

#include "flexnpu/wire/meta.hpp"
#include "fuzz/raw_client.hpp"
#include "plane_fixture.hpp"

namespace flexnpu::test {

enum Target : uint8_t { kRing, kSocket, kMeta, kTargets };

enum Flags : uint8_t {
    kAsk = 1,     // with a request number
    kWait = 2,    // and its answer is waited for
    kHeader = 4,  // the payload begins with a record's header, to be used as it is
    kHead = 8,    // the payload's first word becomes the ring's head
    kPage = 16,   // the payload is written over the session's page and the ring's header, too
    // of sockets
    kFresh = 1,   // on a new connection
    kPassed = 2,  // a descriptor comes along
};

enum Name : uint8_t {
    kMemory = 1,
    kStream,
    kEvent,
    kTheirMemory,
    kTheirStream,
    kTheirEvent,
    kAnswer,
    kEarlierAnswer,
    kNames
};

constexpr uint64_t named(Name n, int32_t offset = 0) {
    return uint64_t(0xf1e7) << 48 | uint64_t(uint32_t(offset)) << 8 | n;
}

// A daemon over the mock vendor, a client that is to come to no harm, and one that plays scripts.
class Stage {
public:
    struct Count {
        uint64_t ring = 0, socket = 0, meta = 0, sessions = 0, scripts = 0;
    } count;

    Stage();
    ~Stage();
    void play(const uint8_t* data, size_t size);
    // Waits until the daemon has read what was played.
    void settle();
    // Dies if the client beside us has lost or seen anything.
    void check_victim();
    Running& running() { return *running_; }

private:
    void ring(const uint8_t* p, const uint8_t* end);
    void socket(const uint8_t* p, const uint8_t* end);
    void meta(const uint8_t* p, const uint8_t* end);
    uint64_t resolve(uint64_t word) const;

    std::unique_ptr<Running> running_;
    std::unique_ptr<RawClient> victim_, attacker_, caller_;
    Objects theirs_, ours_;
    uint64_t answers_[2] = {};
    Bytes pattern_;
    uint64_t played_ = 0, called_ = 0;
    bool caller_open_ = false;
};

}  // namespace flexnpu::test
