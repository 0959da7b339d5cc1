// Shapes of operators that the daemon knows: by their metadata, with the workspace that each asks for.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "flexnpu/wire/meta.hpp"

namespace flexnpu::client {

// What the daemon knows under a shape number: the operator and all its metadata. Pinned while an executor
// refers to it, because a number may be defined anew only after every launch that means the old one has been
// written.
struct Shape {
    std::vector<uint8_t> key;  // op, then the metadata
    uint64_t hash = 0;
    uint64_t number = 0;  // index | generation << 32
    uint64_t workspace = 0;
    std::atomic<uint32_t> users{0};
    uint32_t stamp = 0;     // of the set's clock, for eviction
    bool overflow = false;  // outside the table: dropped with its last user
};

// Set-associative, one lock a set group. An entry that nobody uses gives way to a new one (decode makes new
// shapes with every token).
class ShapeCache {
public:
    static constexpr uint32_t kSets = 1024;
    static constexpr uint32_t kWays = 8;
    static constexpr uint32_t kTable = kSets * kWays;
    static constexpr uint32_t kOverflow =
        8192;  // numbers beyond the table, for sets whose entries are all in use

    ShapeCache();
    // The entry of that key with one more user, or nullptr.
    Shape* find(uint64_t hash, std::span<const uint8_t> key);
    // A shape with a fresh number, invisible until insert(), with one user. nullptr: all numbers are in use.
    std::unique_ptr<Shape> reserve(uint64_t hash, std::span<const uint8_t> key);
    // The daemon has accepted the definition.
    Shape* insert(std::unique_ptr<Shape> shape);
    // The daemon has not: the number is free again.
    void discard(std::unique_ptr<Shape> shape);
    // One user less. A number to drop at the daemon, or 0.
    uint64_t release(Shape* shape);

private:
    struct alignas(64) Set {
        uint64_t hashes[kWays] = {};
        std::unique_ptr<Shape> ways[kWays];
        uint32_t generation[kWays] = {};
        bool busy[kWays] = {};  // reserved, its definition is under way
        uint32_t clock = 0;
        std::mutex mutex;
    };
    std::vector<Set> sets_;
    std::mutex overflow_mutex_;
    std::vector<uint32_t> overflow_free_;
    uint32_t overflow_generation_ = 0;
};

// What an operator's first calls have in common when only sizes differ: operator, data types, formats, ranks,
// and which arguments there are.
uint64_t hash_class(std::span<const uint8_t> key, const char* kinds);

// Workspace sizes by class. Where the last answers of a class agree, the next is foreseen: a new shape
// (decode makes them with every token) is then defined without waiting. A wrong guess does no harm: the
// daemon has workspace of its own for a launch that brings too little, and an error of the vendor's first
// call is reported by the next synchronise of the launch's stream.
class Foresight {
public:
    bool foresee(uint64_t class_hash, uint64_t* workspace);
    void learn(uint64_t class_hash, uint64_t workspace);

private:
    static constexpr uint32_t kAgree = 2;       // answers in a row
    static constexpr uint32_t kAskAgain = 256;  // of the foreseen, one is asked about after all
    static constexpr size_t kMost = 65536;
    struct Class {
        uint64_t workspace = 0;
        uint32_t agreed = 0;
        uint32_t foreseen = 0;
    };
    std::mutex mutex_;
    std::unordered_map<uint64_t, Class> classes_;
};

uint64_t hash_bytes(std::span<const uint8_t> bytes);

}  // namespace flexnpu::client
