// Scripts that are almost what honest clients send.
#pragma once

#include <random>

#include "fuzz/script.hpp"

namespace flexnpu::test {

class Generator {
public:
    explicit Generator(uint64_t seed) : rng_(seed) {}

    // A script for one of the decoders.
    Bytes script(Target target, size_t messages);
    // Changes some bytes of a script behind its first.
    void mutate(Bytes& script);
    // What no mutation has touched, for the corpus: one script a kind of message.
    std::vector<Bytes> honest_scripts();
    uint64_t mutated() const { return mutated_; }

    uint64_t below(uint64_t n) { return rng_() % n; }
    // Mostly what the session holds, else what another does, what is stale, and what never was.
    uint64_t memory() { return one_of(kMemory, kTheirMemory); }
    uint64_t stream() { return below(8) ? one_of(kStream, kTheirStream) : below(3); }
    uint64_t event() { return one_of(kEvent, kTheirEvent); }
    uint64_t answer() {
        return below(6) ? named(below(4) ? kAnswer : kEarlierAnswer, offset()) : below(1 << 20);
    }
    uint64_t size() { return below(8) ? below(100) : below(64) ? below(1 << 17) : interesting(); }
    uint64_t shape() { return below(16) | uint64_t(1) << 32; }
    uint64_t interesting();

    // Operators that were defined under `shape() & 15`.
    struct Defined {
        uint32_t op = 0;
        uint64_t addresses = 0;
        bool known = false;
    } defined[16];
    bool plain = false;  // only what an honest client sends

    template <class T>
    Generator& add(const T& v) {
        append(payload_, v);
        return *this;
    }
    Bytes& payload() { return payload_; }
    Bytes meta(uint32_t op, size_t* addresses);

private:
    int32_t offset() { return plain || below(4) ? 0 : int32_t(below(4) ? below(64) : rng_()); }
    uint64_t one_of(Name ours, Name theirs) { return named(plain || below(12) ? ours : theirs, offset()); }
    void message(Bytes& out, wire::Kind kind);
    void naming(Bytes& out, wire::Kind kind, void (*make)(Generator&), size_t at);
    void graph(Bytes& out);
    void ranks(Bytes& out);
    void own_kernel(Bytes& out);
    void request(Bytes& out);
    void mutate_bytes(uint8_t* p, size_t n);

    std::mt19937_64 rng_;
    Bytes payload_;
    uint64_t mutated_ = 0;
};

}  // namespace flexnpu::test
