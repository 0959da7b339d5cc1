// Layout of what client and daemon share: the session page, the rings, the records in them, and the socket's
// messages.
//
// Both sides are one build (Hello compares the table hash), on one machine, so the layout is plain structs in
// native byte order. Everything in shared memory can be changed by the other side at any time: the daemon
// copies a record before it looks at it, and never reads a length twice.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "flexnpu/wire/handle.hpp"

namespace flexnpu::wire {

inline constexpr uint32_t kMagic = 0x504e5846;  // "FXNP"
inline constexpr uint32_t kVersion = 2;

static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free);

// ---- session page and staging area: one memfd a session ----

// The staging area carries copies between pageable host memory and the device, one block a chunk.
inline constexpr uint32_t kBlocks = 128;
inline constexpr size_t kBlockBytes = size_t(1) << 18;
// A synchronous copy up to this size is made on the dispatcher's own thread, while no large one keeps the
// copy engine.
inline constexpr size_t kQuickCopy = size_t(1) << 16;
inline constexpr size_t kSessionPageBytes = 16384;
inline constexpr size_t kSessionBytes = kSessionPageBytes + kBlocks * kBlockBytes;

// How deep the dispatcher sleeps, which says who must ring the session's doorbell (an eventfd).
enum Doze : uint32_t {
    kAwake = 0,    // polls the rings: nobody
    kNapping = 1,  // looks again within a fifth of a millisecond by itself: only who waits for an answer
    kAsleep = 2,   // everybody
};

// Streams of a session whose gate figures it can read, and a stream's place among them; handles' indices are
// dense.
inline constexpr uint32_t kGatedLanes = 256;
constexpr uint32_t gated_lane(uint64_t stream) { return stream ? handle_index(stream) + 1 : 0; }

// Host functions (aclrtLaunchHostFunc, aclrtLaunchCallback): the daemon says that a stream has reached one,
// the client runs it and says that it has returned, apart from the rings: a stream that waits for a function
// must not wait for rings that are full, or not read, because of it.
inline constexpr uint32_t kHostCalls = 128;  // on their way to the client
inline constexpr uint32_t kHostSlots = 64;   // functions that streams wait for, of one session

struct HostCall {
    uint64_t function;  // the client's number for it
    uint32_t slot;      // where to say that it has returned; kNobodyWaits, kDropped
    uint32_t ticket;
};
inline constexpr uint32_t kNobodyWaits = UINT32_MAX;
inline constexpr uint32_t kDropped = UINT32_MAX - 1;  // it will not run: its stream was aborted

struct SessionPage {
    uint32_t magic;
    uint32_t version;
    uint32_t session;
    int32_t device;
    int32_t process;  // the client, as the daemon and its other clients name it
    // Program order over the client's threads, see merge.hpp.
    alignas(64) std::atomic<uint64_t> sequence;
    alignas(64) std::atomic<uint32_t> doze;
    // Written by the client, read by people.
    alignas(64) std::atomic<uint64_t> launches;
    std::atomic<uint64_t> ring_full;
    std::atomic<uint64_t> steps;  // synchronises after at least one launch
    // Block b is back with the client when block_done[b] holds the ticket under which it was lent.
    alignas(64) std::atomic<uint32_t> block_waiters;
    std::atomic<uint32_t> block_done[kBlocks];
    // Call number n stands in host_calls[n % kHostCalls].
    alignas(64) std::atomic<uint32_t> host_given;  // calls ever given; written by the daemon; a futex
    std::atomic<uint32_t> host_waiting;            // the client sleeps on `host_given`
    HostCall host_calls[kHostCalls];
    alignas(64) std::atomic<uint32_t> host_taken;  // calls ever taken; written by the client
    std::atomic<uint32_t> host_done[kHostSlots];   // the ticket of the function that has returned
    std::atomic<int32_t> host_status[kHostSlots];  // written before that: an ACL error if it could not run
    // How long the gate has held heads of a lane, all in all, ns: by gated_lane(). Written by the daemon when
    // a head that it held goes.
    alignas(64) std::atomic<uint64_t> gated_ns[kGatedLanes];
};
static_assert(sizeof(SessionPage) <= kSessionPageBytes);

// ---- rings: one memfd each, its data mapped twice in a row so that no record is ever split ----

inline constexpr size_t kRingBytes = size_t(1) << 18;
inline constexpr size_t kRingHeaderBytes = 8192;
inline constexpr size_t kRingFileBytes = kRingHeaderBytes + kRingBytes;
inline constexpr size_t kMaxRecord = kRingBytes / 4;
inline constexpr size_t kReplyWords = 256;
// Copies from the host up to this size ride in the record itself.
inline constexpr size_t kInlineBytes = 4096;
inline constexpr size_t kMessageBytes = 1024;

struct RingHeader {
    alignas(64) std::atomic<uint64_t> head;  // bytes ever written; written by the client
    alignas(64) std::atomic<uint64_t> tail;  // bytes ever consumed; written by the daemon
    // The answer to the one synchronous call that the ring's thread can have under way.
    alignas(64) std::atomic<uint32_t> reply;  // request number that the rest of the slot answers; a futex
    std::atomic<uint32_t> waiting;            // the client sleeps on `reply`
    int32_t status;
    uint32_t words;
    alignas(64) uint64_t data[kReplyWords];
    char message[kMessageBytes];
};
static_assert(sizeof(RingHeader) <= kRingHeaderBytes);

enum class Kind : uint16_t {
    invalid = 0,
    // asynchronous
    launch,        // Launch, then `count` addresses
    copy,          // Copy; with inline data behind it when from == inline_data
    memset,        // Memset
    record_event,  // EventOp
    wait_event,    // EventOp
    reset_event,   // EventOp
    host_func,     // HostFunc
    drop_shape,    // DropShape
    collective,    // Collective, then `words` words
    create_event,  // CreateEvent; asked or not
    launch_graph,  // GraphOp
    update_begin,  // GraphOp, its `graph` a task group: launches of the stream give the group's operators new
                   // arguments, until
    update_end,    // StreamOp
    value_op,      // ValueOp
    cache_hint,    // CacheHint
    launch_kernel,  // LaunchKernel, then its attributes, place holders and arguments
    define_shape,   // DefineShape, `addresses` addresses, then the metadata -> workspace size, if asked
    // synchronous (request != 0)
    malloc,           // Malloc -> address
    free,             // Free
    mem_info,         // MemInfo -> free, total
    create_stream,    // CreateStream -> handle
    destroy_stream,   // StreamOp
    sync_stream,      // StreamOp
    query_stream,     // StreamOp -> status
    abort_stream,     // StreamOp
    stream_id,        // StreamOp -> id
    destroy_event,    // EventOp
    sync_event,       // EventOp
    query_event,      // EventOp -> status in the form of the function in `stream`
    event_elapsed,    // EventPair -> float bits
    event_timestamp,  // EventOp -> timestamp
    sync_device,      // StreamOp (deadline only)
    forward,          // Forward, then words -> words
    text,             // Text, then a name -> text
    abort_device,     // StreamOp: every stream of the session
    late_dims,        // LateDims -> for each output of the launch: number of dims, dims
    virtual_memory,   // VirtualMemory -> a word, see there
    share,            // Share -> words, see there
    run_op,  // RunOp, then an operation (operation.hpp): an operator named by type has been given to its
             // stream
    capture_begin,  // StreamOp -> graph, the vendor's number for it
    capture_end,    // CaptureEnd
    capture_info,   // GraphOp -> status
    group_begin,    // StreamOp
    group_end,      // StreamOp -> task group
    destroy_graph,  // GraphOp
    graph_text,     // GraphText -> bytes in all, the text from the offset on
    control_graph,  // ControlGraph
    communicator,   // Communicator, then bytes -> see there
    kernel,         // Kernel, then bytes -> see there
    count_,
};

struct Record {
    uint32_t size;  // of the whole record, a multiple of 8
    Kind kind;
    uint16_t flags;    // RecordFlags
    uint32_t request;  // nonzero: the client waits for this number in RingHeader::reply
    uint32_t tokens;   // of the step whose phase `flags` says; 0: not known
    uint64_t sequence;
};
static_assert(sizeof(Record) == 24);
// Of an operator's or a graph's launch. The phase of its step is said once, by the operator that shows it;
// the step is that from there on. Both: a mixed one.
enum RecordFlags : uint16_t { kBeginsStep = 1, kStepPrefills = 2, kStepDecodes = 4 };
// What a launch is to its lane's step.
struct StepWord {
    uint16_t flags = 0;
    uint32_t tokens = 0;
};

struct Launch {
    uint64_t stream;
    uint64_t workspace;
    uint64_t workspace_size;
    uint64_t shape;  // index | generation << 32
    uint32_t op;
    uint32_t count;  // addresses behind this
    uint64_t
        late;  // nonzero: the client will ask for the shapes of the outputs under this number (late_dims)
};

enum class Place : uint32_t {
    device,       // address in device memory
    staging,      // `address` = offset in the staging area; block, ticket: give the block back
    host,         // `region`, `address` = offset in a host region
    inline_data,  // source only: the bytes follow this struct
};

struct Copy {
    uint64_t stream;  // ignored when request or flags say synchronous
    uint64_t to;
    uint64_t from;
    uint64_t bytes;
    Place to_place;
    Place from_place;
    uint32_t region;  // of whichever side is `host`
    uint32_t block;
    uint32_t ticket;
    uint32_t now;  // 1: aclrtMemcpy, apart from any stream; 0: in the stream's order
};

struct Memset {
    uint64_t stream;
    uint64_t to;
    uint64_t room;
    uint64_t bytes;
    int32_t value;
    uint32_t now;
};

struct EventOp {
    uint64_t event;
    uint64_t stream;
    int64_t deadline_ns;  // of CLOCK_MONOTONIC; < 0: none
};
struct EventPair {
    uint64_t start;
    uint64_t end;
};
struct StreamOp {
    uint64_t stream;
    int64_t deadline_ns;  // of CLOCK_MONOTONIC; < 0: none. destroy_stream: 0 drops what has not run
};
struct GraphOp {
    uint64_t graph;
    uint64_t stream;
};
struct CaptureEnd {
    uint64_t stream;
    uint64_t drop;  // 1: the client has found the capture invalid
};
struct GraphText {
    uint64_t graph;
    uint64_t offset;  // 0: asks the vendor anew
    uint64_t flags;
};
struct ControlGraph {
    uint64_t graph;
    uint32_t what;  // ControlOf
    uint32_t reserved;
};
enum ControlOf : uint32_t { kAbortGraph = 1, kUpdateGraph = 2, kPrintGraph = 3 };
struct ValueOp {
    uint64_t stream;
    uint64_t address;
    uint64_t value;
    uint32_t flag;
    uint32_t wait;  // 1: wait, 0: write
};
struct CreateStream {
    uint32_t priority;
    uint32_t flags;
};
struct CreateEvent {
    uint64_t handle;  // the client's choice: an index that is free, and a generation
    uint32_t flags;
    uint32_t ex;
};
struct Malloc {
    uint64_t bytes;
    int32_t policy;
    uint32_t align32;
};
struct Free {
    uint64_t address;
    uint64_t with_sync;
};
struct MemInfo {
    int32_t attribute;
    uint32_t reserved;
};
struct VirtualMemory {
    enum Call : uint32_t {
        reserve,      // bytes, address: where the program would like it, flags -> address
        release,      // address
        allocate,     // bytes, flags, memory, types -> handle
        free,         // handle
        map,          // address, bytes, offset, handle, flags
        unmap,        // address
        granularity,  // option, memory, types -> bytes
        retain,       // address -> handle, one more of what is mapped there
        mapped,       // address, bytes: whether all of it is; bytes are not 0
    };
    uint32_t call;
    int32_t option;
    uint64_t address;
    uint64_t bytes;
    uint64_t offset;
    uint64_t handle;
    uint64_t flags;
    int32_t memory;
    int32_t handle_type;
    int32_t allocation_type;
    int32_t reserved;
};
struct Share {
    enum Call : uint32_t {
        export_memory,    // address, bytes, flags -> key
        allow_memory,     // key, processes
        import_memory,    // key -> address, bytes
        close_memory,     // key -> the address that is no longer this process's, or 0
        export_physical,  // handle, flags -> number
        allow_physical,   // handle: the number, processes
        import_physical,  // handle: the number -> handle
        export_event,     // handle -> key
        open_event,       // key, handle: the client's choice, as in CreateEvent
    };
    static constexpr uint32_t kProcesses = 32;
    uint32_t call;
    uint32_t count;  // of processes
    uint64_t address;
    uint64_t bytes;
    uint64_t flags;
    uint64_t handle;
    char key[64];
    int32_t processes[kProcesses];
};
struct DefineShape {
    uint64_t shape;
    uint32_t op;
    uint32_t addresses;
    uint32_t meta_bytes;
    uint32_t reserved;
};
struct DropShape {
    uint64_t shape;
};
struct LateDims {
    uint64_t late;
};
struct HostFunc {
    uint64_t stream;
    uint64_t function;  // the client's own number for it: comes back in HostCall
    uint32_t block;     // the stream waits until it has returned
    uint32_t reserved;
};
// A collective or a message of a communicator, in its stream's order.
struct Collective {
    enum Of : uint32_t {
        all_reduce,
        reduce,
        all_gather,
        all_gather_v,
        reduce_scatter,
        reduce_scatter_v,
        broadcast,
        scatter,
        all_to_all,
        all_to_all_v,
        all_to_all_vc,
        barrier,
        send_one,
        receive_one,
        batch,  // words: for each message send (0) or receive (1) and its type << 32, buffer, count, peer
        count_
    };
    uint64_t communicator;
    uint64_t stream;
    uint64_t send, recv;              // addresses; broadcast and messages: send
    uint64_t send_count, recv_count;  // elements; recv_count where it is another
    int32_t send_type, recv_type;     // HcclDataType
    int32_t reduction;
    uint32_t peer;  // or root
    Of of;
    uint32_t words;  // behind this: counts and displacements, the sender's first
};
// Making communicators, and what is asked of them.
struct Communicator {
    enum Call : uint32_t {
        root_info,    // -> the first bytes of the root info, as many as fit; the rest by answer_rest
        answer_rest,  // `id`: from this byte on -> the bytes
        initialise,   // ranks, rank; root info, then `config` bytes of configuration -> handle
        split,        // communicator, id, ranks, rank; the members (uint32_t), then `config` bytes -> handle
        destroy,
        name,
        async_error,
        resume,      // communicator -> nothing, text, error, nothing
        capability,  // -> number
        count_
    };
    uint64_t communicator;
    uint64_t id;
    uint32_t ranks, rank;
    uint32_t config;
    Call call;
};
struct CacheHint {
    uint64_t stream;
    uint64_t address;
    uint64_t bytes;
    int64_t type;  // aclrtCmoType
};
struct RunOp {
    uint64_t stream;
    uint64_t bytes;  // of the operation behind this
};
struct Forward {
    uint32_t function;
    uint32_t words;
    uint32_t out_words;
    uint32_t reserved;
};
struct Text {
    uint32_t what;  // TextOf
    int32_t number;
    uint32_t bytes;  // of the name behind this
    uint32_t reserved;
};
enum TextOf : uint32_t { kVersionOf = 1, kVersionNumberOf = 2, kCompileOption = 3 };

template <class T>
concept Plain = std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0;
static_assert(Plain<Launch> && Plain<Copy> && Plain<Memset> && Plain<EventOp> && Plain<DefineShape> &&
              Plain<HostFunc> && Plain<Text> && Plain<Collective> && Plain<Communicator>);

constexpr size_t round8(size_t n) { return (n + 7) & ~size_t(7); }

// Kernels of a program's own, which a daemon serves that was told to (flexnpud --allow-kernels).
struct Kernel {
    enum Call : uint32_t {
        begin,              // bytes: the whole binary's
        data,               // bytes, behind this: the next of it
        load,               // count: options of 20 bytes behind this -> binary
        unload,             // handle: a binary
        function,           // handle: a binary; bytes: of the name behind this -> function
        function_by_entry,  // handle: a binary, bytes: the entry -> function
        function_address,   // handle: a function -> the addresses of its two halves
        sync_address,       // -> the device's address that kernels synchronise by
        count_,
    };
    uint32_t call;
    uint32_t count;
    uint64_t handle;
    uint64_t bytes;
};
struct LaunchKernel {
    uint64_t stream;
    uint64_t function;
    uint64_t arguments;  // in device memory, or 0: host arguments follow
    uint64_t bytes;      // of the arguments
    uint32_t blocks;
    uint32_t attributes;     // of 20 bytes each, behind this
    uint32_t place_holders;  // of 8 bytes each, behind those; then the arguments
    uint32_t reserved;
};

// ---- the socket: SOCK_SEQPACKET, one request and one answer a message; file descriptors travel with answers
// ----

// free_ring: a ring that the client could not map, and has never written to.
enum class Ask : uint32_t { hello = 1, new_ring, host_memory, free_host_memory, free_ring };

// `magic` and `version` stay where they are in every version: each side can tell that the other is of
// another.
struct Request {
    uint32_t magic;
    uint32_t version;
    Ask ask;
    uint32_t region;      // free_host_memory; free_ring: the ring's number; hello: the device's number in the
                          // program, see handle.hpp
    uint64_t bytes;       // host_memory; hello: the quota of device memory that the program was given, 0: the
                          // daemon's
    uint64_t table_hash;  // hello
    uint32_t question;    // the connection's count of questions, never 0
    uint32_t reserved;
};

// hello: fds = session memory, doorbell. new_ring: fd = ring, number = its index. host_memory: fd = the
// memory, number = its region.
struct Answer {
    uint32_t magic;
    int32_t status;  // an ACL error
    uint32_t number;
    int32_t device;
    char soc[64];
    char message[256];
    // What this answers. 0: nothing that was asked; the daemon turns a connection away, or is being stopped.
    uint32_t question;
    Ask ask;
};

}  // namespace flexnpu::wire
