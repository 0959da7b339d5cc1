// What the wire programs keep and tell. The tracer reads this file, too (probes/requests/wire.py).
#pragma once

struct user_iovec {
    u64 base;
    u64 len;
};
struct user_msg {
    u64 name;
    u32 name_len;
    u32 pad;
    u64 iov;
    u64 iov_len;
};
struct user_mmsg {
    struct user_msg head;
    u64 control, control_len;
    u32 flags, pad;
    u32 len;
    u32 pad2;
};

#define SLICE 4096
#define SCRATCH 8192  // where a slice is put together: a part may be as long as a slice, and begin at its end
#define IN 0
#define OUT 1

// What is copied of one call. A longer one is copied to there, and its last slice: it shows where a body's
// frame goes on.
#define MAX_IN_BYTES 65536
#define MAX_OUT_BYTES 262144

// SOCKET: one that a target uses and did not accept, so perhaps one to another target; GONE: it is no more.
enum wire_kind { KIND_OPEN = 1, KIND_DATA, KIND_CLOSE, KIND_SENT, KIND_CLOSED_RANGE, KIND_SOCKET, KIND_GONE };
// Of a connection: FRESH is accepted, and nothing was read from it yet.
enum wire_state { FRESH, HTTP };
// Of a descriptor. NOT_FOLLOWED: no socket, or one that speaks something else. A SOCKET may begin to speak
// HTTP.
enum wire_descriptor { NOT_FOLLOWED, SOCKET, LIVE };
// How a call names its bytes. OPAQUE: not at all, they do not pass through the program's memory. NO_CALL: the
// thread is in none.
enum wire_shape { BUFFER, VECTOR, MESSAGES, OPAQUE, URING, NO_CALL };
enum wire_loss {
    WIRE_LOST,
    WIRE_CALLS_LOST,
    WIRE_CONNECTIONS_LOST,
    WIRE_UNREADABLE_BYTES,
    WIRE_TRUNCATED_BYTES,
    WIRE_KERNEL_BYTES,
    WIRE_UNSEEN_BYTES,
    WIRE_IO_URING_BYTES,
    WIRE_UNSUPPORTED,
    WIRE_TLS,
    WIRE_HTTP2,
    N_LOSSES
};

struct call {
    u64 start;
    u64 addr;        // the buffer, the iovec array, or the array of messages
    u64 count;       // its bytes, or entries
    u64 connection;  // key in `connections`
    u64 arrived;     // when the socket's data arrived, or 0
    u64 kept;        // when bytes were seen unsent although the write was through, or 0
    u64 moved;       // bytes that the socket has taken of the call
    u32 unsent;      // how many
    u32 fd;
    u8 shape;
    u8 direction;
    u8 live;  // the descriptor was LIVE
    u8 pad[5];
};

struct descriptor {
    u64 connection;  // key in `connections`, or where it will be
    u32 state;
    u32 pad;
};

struct connection {
    u64 id;
    u64 offset[2];
    u32 state;
    u32 tgid;  // who accepted it, or first read from it
};

struct record {
    u64 t;       // data: when they arrived, or the start of the write
    u64 called;  // data: when the read returned, or the start of the write
    u64 connection;
    u64 offset;  // of a closed range, its first descriptor
    u64 sent;    // of a write's stream, the bytes that had been sent when the write was through
    u64 kept;    // when that was seen, if some had not
    u32 tgid;
    u32 fd;
    u32 span;    // bytes of the stream that this record stands for; of a closed range, its last descriptor
    u32 length;  // bytes copied, the first of the span
    u8 kind;
    u8 direction;
    u8 first;   // the first bytes of a call
    u8 socket;  // of KIND_OPEN: the kernel said that it is one
    u8 pad[4];
    char data[SCRATCH];
};
// The head of a record, for the programs that may interrupt the one which fills a record.
struct mark {
    u64 t, called, connection, offset, sent, kept;
    u32 tgid, fd, span, length;
    u8 kind, direction, first, socket;
    u8 pad[4];
};

// The two ends of a socket. Addresses as on the wire, those of IPv4 in the first four bytes; ports as
// numbers.
struct ends {
    u64 peer;  // of a Unix socket, the other end's struct sock
    u16 family;
    u16 local_port;
    u16 remote_port;
    u8 pad[2];
    u8 local[16];
    u8 remote[16];
};
// A mark of KIND_OPEN or KIND_SOCKET.
struct mark_of_ends {
    struct mark mark;
    struct ends ends;
};

// Where a copy stands. It is kept in a map because the verifier would otherwise follow every value that it
// can take.
struct walk {
    u64 left;          // bytes of the call that are ahead
    u64 part;          // of them in the present buffer
    u64 at;            // there
    u64 vector;        // the next entry of its array
    u64 entries;       // how many are ahead
    u64 message;       // the next message
    u64 messages;      // how many are ahead
    u64 message_left;  // bytes of the present message that are in the entries ahead
    u64 start;         // in the stream, the call's first byte
    u64 offset;        // the next one
    u64 told;          // up to which there are records
    u64 room;          // bytes that may yet be copied
    u64 skip;          // bytes to pass over
    u32 fill;          // of the slice that is being put together
    u32 pad;
};
