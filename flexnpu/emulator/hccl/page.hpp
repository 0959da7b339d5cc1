// What the ranks of one communicator share: a memfd that each of them has mapped, and a futex in it that
// moves when anything does.
//
// A rank writes only its own slot and its own ends of the channels, so that a rank may be killed at any
// instruction and leaves the rest usable. Data crosses in windows: a rank lends out its own, chunk by chunk,
// and the others read; no rank sees another's device memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace flexnpu::emulator::hccl {

inline constexpr uint32_t kMaxRanks = 64;
inline constexpr uint64_t kWindow = uint64_t(4) << 20;  // of each rank, for collectives
inline constexpr uint64_t kChannelWindow =
    uint64_t(1) << 20;  // of each ordered pair, for sends: two halves, one written while one is read

enum class Op : uint32_t {
    None,
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Reduce,
    Scatter,
    AllToAll,
    Barrier,
    SendRecv,
};
const char* name_of(Op op);

// One call of a collective as its ranks must agree on it, and what each of them says of its own part.
struct Call {
    Op op;
    int32_t dtype;
    int32_t reduce;
    uint32_t root;
    uint64_t count;             // elements; 0 where ranks may differ
    uint64_t longest;           // bytes of the longest piece that this rank gives to another
    uint64_t moved;             // bytes that the model's time is for
    uint64_t ready_ns;          // device time at which this rank's stream came here
    uint64_t piece[kMaxRanks];  // bytes that this rank gives to each
};

enum class Seat : uint32_t { Free, Joining, Joined, Left };

struct alignas(64) RankSlot {
    std::atomic<Seat> seat;
    int32_t pid;
    uint64_t start_time;
    int32_t device;
    char machine[44];
    alignas(64) std::atomic<uint64_t> phase;  // meetings that this rank has come to
    std::atomic<uint64_t> resumed;            // the same, for HcclCommResume
    char failed[256];  // why this rank failed the communicator; written before `failure`
    Call call;         // written before the rank comes to a collective's first meeting
    uint64_t end_ns;   // written before it comes to the last
};

// Messages from one rank to another. They are numbered from 1; what is said of message k stands in [k % 2].
struct alignas(64) Channel {
    // the sender's
    std::atomic<uint64_t> offered;  // messages begun
    std::atomic<uint64_t> written;  // chunks, over all messages
    uint64_t send_bytes[2];
    uint64_t send_ready_ns[2];
    // the receiver's
    alignas(64) std::atomic<uint64_t> accepted;
    std::atomic<uint64_t> read;
    uint64_t recv_bytes[2];
    uint64_t recv_ready_ns[2];
};

// Where the first rank of a new sub-communicator tells the others how to find it.
struct Offer {
    std::atomic<uint32_t> state;  // 0 free, 1 being written, 2 open
    uint64_t id;
    uint64_t members;  // a hash of the ranks
    unsigned char token[32];
};

struct Page {
    static constexpr uint64_t kMagic = 0x666c65786863636cull;
    static constexpr uint32_t kOffers = 32;

    uint64_t magic;
    uint64_t size;
    std::atomic<uint32_t> ranks;  // 0 until the first rank has said how many
    char name[128];
    std::atomic<uint32_t> pulse;  // a futex; moved when anything here changes
    // The communicator's failure: an HcclResult, and above it the number of the rank that has the text, plus
    // one.
    std::atomic<uint64_t> failure;
    Offer offers[kOffers];
    RankSlot slots[kMaxRanks];
    Channel channels[kMaxRanks * kMaxRanks];
};

// The page and the windows behind it, in this process.
class Mapping {
public:
    // Makes the memory of a new communicator; a descriptor. Throws std::runtime_error.
    static int create();
    // Maps it; takes the descriptor. `windows` are mapped by use(), when the number of ranks is known.
    explicit Mapping(int fd);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    void use(uint32_t ranks);
    Page& page() { return *page_; }
    char* window(uint32_t rank) { return data_ + rank * kWindow; }
    char* channel(uint32_t from, uint32_t to) {
        return data_ + ranks_ * kWindow + (uint64_t(from) * ranks_ + to) * kChannelWindow;
    }
    int fd() const { return fd_; }

private:
    static constexpr uint64_t kPageBytes = (sizeof(Page) + 4095) / 4096 * 4096;
    static constexpr uint64_t data_bytes(uint64_t ranks) {
        return ranks * kWindow + ranks * ranks * kChannelWindow;
    }

    int fd_;
    Page* page_ = nullptr;
    char* data_ = nullptr;
    uint32_t ranks_ = 0;
};

// Says that something in the page has changed.
void wake_waiters(Page& page);
// Sleeps until somebody wakes the waiters after `seen` was read from the pulse, or `ns` have passed.
void wait_for_change(Page& page, uint32_t seen, uint64_t ns);

}  // namespace flexnpu::emulator::hccl
