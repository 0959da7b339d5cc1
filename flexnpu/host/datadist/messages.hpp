// What engines of one host say to each other over a socket, and the checks of what comes in. Both ends are
// this library, in processes that need not trust each other.
//
// The engine that transfers asks: hello; then for each transfer begin and end. The other answers hello with
// the table of its registered memory, and begin with `go`, or with the table where the asker's is old. From
// begin to end, or to the end of the connection, what is registered stays registered.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace flexnpu::host::datadist {

enum class Kind : uint16_t { hello = 1, begin, end, table, go, refused };

struct Header {
    static constexpr uint32_t kMagic = 0x31445846;
    uint32_t magic;
    Kind kind;
    uint16_t version;
    uint32_t bytes;  // that follow
};
static_assert(sizeof(Header) == 12);
inline constexpr uint16_t kVersion = 1;

struct Identity {
    char host[40];     // the kernel's number for this boot
    char process[33];  // a random number
    char engine[128];  // hello: whom it means; table: who answers
    char zero[7];
};
static_assert(sizeof(Identity) == 208);

// Memory that was registered.
struct Range {
    uint64_t address;
    uint64_t bytes;
    uint64_t on_host;  // 0 or 1: memory of the host is nobody else's
};
// What another process imports at once: an allocation's part, or physical memory by its number.
struct Piece {
    uint64_t address;
    uint64_t bytes;
    uint64_t number;  // of physical memory; 0: the key counts
    char key[72];
};
static_assert(sizeof(Piece) == 96);

struct Table {
    uint64_t generation = 0;
    Identity who{};
    std::vector<Range> ranges;
    std::vector<Piece> pieces;
};

inline constexpr uint32_t kMostRanges = 4096, kMostPieces = 16384;
inline constexpr uint32_t kMostToServer = 512, kMostText = 400;
inline constexpr uint32_t kMostToClient =
    32 + sizeof(Identity) + kMostRanges * sizeof(Range) + kMostPieces * sizeof(Piece);

std::string encode(Kind kind, std::string_view payload = {});
std::string encode(const Identity& hello);
std::string encode(uint64_t begin_generation);
std::string encode(const Table& table);

struct Message {
    Kind kind;
    std::span<const uint8_t> payload;  // within the bytes that were given
    size_t size;                       // of the whole message
};
// The message that `bytes` begin with; nothing while it is not whole. What can be no message of at most
// `most` bytes sets *wrong.
std::optional<Message> decode(std::span<const uint8_t> bytes, uint32_t most, std::string* wrong);

// What is in a payload, or nothing where it is not as it must be.
std::optional<Identity> read_hello(std::span<const uint8_t> payload);
std::optional<uint64_t> read_begin(std::span<const uint8_t> payload);
std::optional<Table> read_table(std::span<const uint8_t> payload);
// Any bytes as a line to print.
std::string read_text(std::span<const uint8_t> payload);

// Of this process; the engine's name is cut where it is too long.
Identity identity(std::string_view engine);

}  // namespace flexnpu::host::datadist
