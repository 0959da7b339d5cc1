#include "messages.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <mutex>

namespace flexnpu::host::datadist {

namespace {

struct TableHead {
    uint64_t generation;
    uint32_t ranges, pieces;
    Identity who;
};

template <class T>
void append(std::string& out, const T& value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <size_t N>
bool is_text(const char (&field)[N]) {
    return memchr(field, 0, N) != nullptr;
}

bool is_sound(const Identity& one) {
    return is_text(one.host) && is_text(one.process) && is_text(one.engine);
}

bool is_sound(uint64_t address, uint64_t bytes) { return bytes != 0 && bytes <= UINT64_MAX - address; }

template <size_t N>
void put(char (&field)[N], std::string_view text) {
    text.copy(field, N - 1);
}

}  // namespace

std::string encode(Kind kind, std::string_view payload) {
    std::string out;
    append(out, Header{Header::kMagic, kind, kVersion, uint32_t(payload.size())});
    return out.append(payload);
}

std::string encode(const Identity& hello) {
    std::string payload;
    append(payload, hello);
    return encode(Kind::hello, payload);
}

std::string encode(uint64_t begin_generation) {
    std::string payload;
    append(payload, begin_generation);
    return encode(Kind::begin, payload);
}

std::string encode(const Table& table) {
    std::string payload;
    append(payload, TableHead{table.generation, uint32_t(table.ranges.size()), uint32_t(table.pieces.size()),
                              table.who});
    for (const Range& one : table.ranges) append(payload, one);
    for (const Piece& one : table.pieces) append(payload, one);
    return encode(Kind::table, payload);
}

std::optional<Message> decode(std::span<const uint8_t> bytes, uint32_t most, std::string* wrong) {
    Header header;
    // Who speaks another language may never send a whole header.
    if (std::memcmp(bytes.data(), &Header::kMagic, std::min(bytes.size(), sizeof(Header::kMagic))) != 0) {
        *wrong = "it speaks another language";
        return std::nullopt;
    }
    if (bytes.size() < sizeof(header)) return std::nullopt;
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (header.version != kVersion) {
        *wrong =
            "it speaks version " + std::to_string(header.version) + ", this is " + std::to_string(kVersion);
        return std::nullopt;
    }
    if (header.bytes > most) {
        *wrong = "a message of " + std::to_string(header.bytes) + " bytes";
        return std::nullopt;
    }
    if (bytes.size() - sizeof(header) < header.bytes) return std::nullopt;
    return Message{header.kind, bytes.subspan(sizeof(header), header.bytes), sizeof(header) + header.bytes};
}

std::optional<Identity> read_hello(std::span<const uint8_t> payload) {
    Identity hello;
    if (payload.size() != sizeof(hello)) return std::nullopt;
    std::memcpy(&hello, payload.data(), sizeof(hello));
    return is_sound(hello) ? std::optional(hello) : std::nullopt;
}

std::optional<uint64_t> read_begin(std::span<const uint8_t> payload) {
    uint64_t generation;
    if (payload.size() != sizeof(generation)) return std::nullopt;
    std::memcpy(&generation, payload.data(), sizeof(generation));
    return generation;
}

std::optional<Table> read_table(std::span<const uint8_t> payload) {
    TableHead head;
    if (payload.size() < sizeof(head)) return std::nullopt;
    std::memcpy(&head, payload.data(), sizeof(head));
    payload = payload.subspan(sizeof(head));
    if (!is_sound(head.who) || head.ranges > kMostRanges || head.pieces > kMostPieces ||
        payload.size() != head.ranges * sizeof(Range) + head.pieces * sizeof(Piece))
        return std::nullopt;
    Table table{head.generation, head.who, std::vector<Range>(head.ranges), std::vector<Piece>(head.pieces)};
    const size_t split = head.ranges * sizeof(Range);
    if (split) std::memcpy(table.ranges.data(), payload.data(), split);
    if (head.pieces) std::memcpy(table.pieces.data(), payload.data() + split, payload.size() - split);
    for (const Range& one : table.ranges) {
        if (!is_sound(one.address, one.bytes) || one.on_host > 1) return std::nullopt;
    }
    for (const Piece& one : table.pieces) {
        if (!is_sound(one.address, one.bytes) || !is_text(one.key)) return std::nullopt;
    }
    return table;
}

std::string read_text(std::span<const uint8_t> payload) {
    std::string text(reinterpret_cast<const char*>(payload.data()),
                     std::min<size_t>(payload.size(), kMostText));
    std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return text;
}

Identity identity(std::string_view engine) {
    // A child of fork() is a process of its own.
    static std::mutex mutex;
    static pid_t known = 0;
    static Identity own;
    const std::lock_guard lock(mutex);
    if (known != getpid()) {
        own = {};
        std::string boot;
        std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
        put(own.host, boot);
        uint8_t random[16] = {};
        if (getrandom(random, sizeof(random), 0) == sizeof(random)) {
            for (size_t i = 0; i < sizeof(random); i++) {
                own.process[2 * i] = "0123456789abcdef"[random[i] >> 4];
                own.process[2 * i + 1] = "0123456789abcdef"[random[i] & 15];
            }
        }
        known = getpid();
    }
    Identity one = own;
    put(one.engine, engine);
    return one;
}

}  // namespace flexnpu::host::datadist
