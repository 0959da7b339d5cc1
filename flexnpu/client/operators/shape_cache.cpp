#include "flexnpu/client/operators/shape_cache.hpp"

#include <cstring>

#include "flexnpu/wire/layout.hpp"

namespace flexnpu::client {

// Eight bytes a step; the metadata's length is a multiple of eight.
uint64_t hash_bytes(std::span<const uint8_t> bytes) {
    constexpr uint64_t k = 0x9e3779b97f4a7c15ull;
    uint64_t h = bytes.size() * k;
    const uint8_t* p = bytes.data();
    size_t n = bytes.size() / 8;
    uint64_t a = h ^ 0x8ebc6af09c88c6e3ull;
    auto mix = [](uint64_t x, uint64_t y) {
        const unsigned __int128 m = static_cast<unsigned __int128>(x) * y;
        return uint64_t(m) ^ uint64_t(m >> 64);
    };
    for (; n >= 2; n -= 2, p += 16) {
        uint64_t x, y;
        std::memcpy(&x, p, 8);
        std::memcpy(&y, p + 8, 8);
        a = mix(a ^ x, k ^ y);
    }
    if (n) {
        uint64_t x;
        std::memcpy(&x, p, 8);
        a = mix(a ^ x, k);
    }
    h = mix(a ^ h, 0xd6e8feb86659fd93ull);
    return h ? h : 1;
}

uint64_t hash_class(std::span<const uint8_t> key, const char* kinds) {
    constexpr uint64_t k = 0x9e3779b97f4a7c15ull;
    uint64_t word;
    std::memcpy(&word, key.data(), 8);
    uint64_t h = word * k;
    size_t at = 8;
    auto head = [&](wire::MetaHead* out) {
        std::memcpy(out, key.data() + at, sizeof(*out));
        std::memcpy(&word, out, 8);
        at += sizeof(*out);
    };
    auto mix = [&](uint64_t v) { h = (h ^ v ^ (h >> 29)) * k; };
    // The head's word holds kind, presence, type, format and ranks or length; what follows a head is skipped.
    auto tensor = [&](const wire::MetaHead& m) {
        mix(word);
        if (m.present) at += 8 * (1 + size_t(m.counts[0]) + m.counts[1] + m.counts[2]);
    };
    for (; *kinds; kinds++) {
        wire::MetaHead m;
        head(&m);
        switch (*kinds) {
            case 'T':
            case 't': tensor(m); break;
            case 'L':
            case 'l':
            case 'C': {
                mix(word);
                for (uint32_t i = 0; m.present && i < m.n; i++) {
                    wire::MetaHead e;
                    head(&e);
                    if (*kinds != 'C')
                        tensor(e);
                    else {
                        mix(word);
                        at += e.present ? 16 : 0;
                    }
                }
                break;
            }
            case 'S':
                mix(word);
                at += m.present ? 16 : 0;
                break;
            case 'I':
            case 'F':
            case 'B':
            case 's':
                m.n = m.present ? m.n : 0;
                at += wire::round8(size_t(m.n) * (*kinds == 'I' ? 8 : *kinds == 'F' ? 4 : 1));
                mix(uint64_t(m.kind) | uint64_t(m.present) << 8);
                break;
            default:
                mix(word);
                at += 8;
                break;
        }
    }
    return h;
}

bool Foresight::foresee(uint64_t class_hash, uint64_t* workspace) {
    std::lock_guard lock(mutex_);
    auto it = classes_.find(class_hash);
    if (it == classes_.end() || it->second.agreed < kAgree || ++it->second.foreseen % kAskAgain == 0)
        return false;
    *workspace = it->second.workspace;
    return true;
}

void Foresight::learn(uint64_t class_hash, uint64_t workspace) {
    std::lock_guard lock(mutex_);
    if (classes_.size() >= kMost) classes_.clear();
    Class& c = classes_[class_hash];
    c.agreed = c.agreed && c.workspace == workspace ? c.agreed + 1 : 1;
    c.workspace = workspace;
}

ShapeCache::ShapeCache() : sets_(kSets) {
    for (uint32_t i = kOverflow; i > 0; i--) overflow_free_.push_back(kTable + i - 1);
}

Shape* ShapeCache::find(uint64_t hash, std::span<const uint8_t> key) {
    Set& set = sets_[hash % kSets];
    std::lock_guard lock(set.mutex);
    for (uint32_t w = 0; w < kWays; w++) {
        if (set.hashes[w] != hash) continue;
        Shape* s = set.ways[w].get();
        if (s->key.size() != key.size() || std::memcmp(s->key.data(), key.data(), key.size()) != 0) continue;
        s->stamp = ++set.clock;
        s->users.fetch_add(1, std::memory_order_relaxed);
        return s;
    }
    return nullptr;
}

std::unique_ptr<Shape> ShapeCache::reserve(uint64_t hash, std::span<const uint8_t> key) {
    auto shape = std::make_unique<Shape>();
    shape->hash = hash;
    shape->key.assign(key.begin(), key.end());
    shape->users.store(1);
    const uint32_t index = uint32_t(hash % kSets);
    Set& set = sets_[index];
    {
        std::lock_guard lock(set.mutex);
        uint32_t best = kWays;
        for (uint32_t w = 0; w < kWays; w++) {
            if (set.busy[w]) continue;
            if (!set.ways[w]) {
                best = w;
                break;
            }
            // Acquire: the last user's launch was written before it let go.
            if (set.ways[w]->users.load(std::memory_order_acquire) != 0) continue;
            if (best == kWays || set.ways[w]->stamp < set.ways[best]->stamp) best = w;
        }
        if (best != kWays) {
            set.ways[best].reset();
            set.hashes[best] = 0;
            set.busy[best] = true;
            shape->number = (index * kWays + best) | uint64_t(++set.generation[best]) << 32;
            return shape;
        }
    }
    std::lock_guard lock(overflow_mutex_);
    if (overflow_free_.empty()) return nullptr;
    shape->overflow = true;
    shape->number = overflow_free_.back() | uint64_t(++overflow_generation_) << 32;
    overflow_free_.pop_back();
    return shape;
}

Shape* ShapeCache::insert(std::unique_ptr<Shape> shape) {
    if (shape->overflow) return shape.release();
    Set& set = sets_[shape->hash % kSets];
    const uint32_t way = uint32_t(shape->number) % kWays;
    std::lock_guard lock(set.mutex);
    set.busy[way] = false;
    set.hashes[way] = shape->hash;
    shape->stamp = ++set.clock;
    set.ways[way] = std::move(shape);
    return set.ways[way].get();
}

void ShapeCache::discard(std::unique_ptr<Shape> shape) {
    if (shape->overflow) {
        std::lock_guard lock(overflow_mutex_);
        overflow_free_.push_back(uint32_t(shape->number));
        return;
    }
    Set& set = sets_[shape->hash % kSets];
    std::lock_guard lock(set.mutex);
    set.busy[uint32_t(shape->number) % kWays] = false;
}

uint64_t ShapeCache::release(Shape* shape) {
    // Read first: at zero users a table entry may be evicted by another thread.
    const bool overflow = shape->overflow;
    const uint64_t number = shape->number;
    if (shape->users.fetch_sub(1, std::memory_order_acq_rel) != 1 || !overflow) return 0;
    delete shape;
    std::lock_guard lock(overflow_mutex_);
    overflow_free_.push_back(uint32_t(number));
    return number;
}

}  // namespace flexnpu::client
