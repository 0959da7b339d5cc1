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

#define SLICE 4096
#define IN 0
#define OUT 1

enum wire_kind { KIND_OPEN = 1, KIND_DATA, KIND_CLOSE, KIND_SENT };
enum wire_state { FRESH, HTTP, OTHER };
enum wire_loss {
    WIRE_LOST,
    WIRE_CALLS_LOST,
    WIRE_CONNECTIONS_LOST,
    WIRE_UNREADABLE_BYTES,
    WIRE_TRUNCATED_BYTES,
    WIRE_UNSUPPORTED,
    WIRE_TLS,
    WIRE_HTTP2,
    N_LOSSES
};

struct call {
    u64 start;
    u64 addr;     // the buffer, or the iovec array
    u64 count;    // its bytes, or entries
    u64 arrived;  // when the socket's data arrived, or 0
    u64 kept;     // when bytes were seen unsent although the write was through, or 0
    u32 unsent;   // how many
    u32 fd;
    u8 vector;
    u8 direction;
};

struct connection {
    u64 id;
    u64 offset[2];
    u32 state;
};

struct record {
    u64 t;       // data: when they arrived, or the start of the write
    u64 called;  // data: when the read returned, or the start of the write
    u64 connection;
    u64 offset;
    u64 sent;  // of a write's stream, the bytes that had been sent when the write was through
    u64 kept;  // when that was seen, if some had not
    u32 tgid;
    u32 fd;
    u32 span;    // bytes of the stream that this record stands for
    u32 length;  // bytes copied, the first of the span
    u8 kind;
    u8 direction;
    u8 pad[6];
    char data[SLICE];
};
// The head of a record, for the program that may interrupt the one which fills a record.
struct mark {
    u64 t, called, connection, offset, sent, kept;
    u32 tgid, fd, span, length;
    u8 kind, direction;
    u8 pad[6];
};

// Where a copy stands. It is kept in a map because the verifier would otherwise follow every value that it
// can take.
struct walk {
    u64 left;  // bytes of the call
    u64 part;  // bytes of the present buffer
    u64 at;
    u64 entry;   // the next buffer
    u64 offset;  // in the stream
};
