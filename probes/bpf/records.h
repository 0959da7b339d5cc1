// What the step programs keep and tell: structures of their maps, the record of a step, counters. The tracer
// reads this file, too (probes/steps/raw.py), so that each layout and each name stands once.
#pragma once

#include "flexnpu/wire/step_record.h"

#define TENSORS 4             // tensors remembered a thread: an embedding makes three
#define ARRAY_VALUES 128      // values looked at in an integer array
#define PROCESS_LANES 8       // lanes that one device synchronise ends
#define ATTENTIONS 2          // attention calls looked at in a step: one kernel for prompts, one for tokens
#define PLAIN_WAIT_NS 100000  // a synchronise that waited so long waited for work that no probe saw

#define ACL_INT32 3
#define ACL_INT64 9
#define H2D 1
#define D2H 2

// Beyond flexnpu_step_flags: an executor that the program keeps, whose first call was seen once; a graph
// behind which graphs without an embedding were captured, its pieces; such a piece.
#define REMEMBERED 32
#define PIECES 64
#define PIECE 128

#define GRAPH_WEIGHT 64    // a graph's launch stands for so many operators
#define INPUT_NS 20000000  // input of one step is copied within this time

// Kinds of a record, and of the step that a lane is in.
enum step_kind { BETWEEN = 0, EMBEDDING = 1, GRAPH = 2, PLAIN = 3, BEGIN = 4, CAPTURE = 5, ATTENTION = 6 };
// Counters, added up over CPUs by the tracer.
enum counter {
    STEPS_SENT,
    STEPS_LOST,
    BEGINS_LOST,
    LAUNCHES_LOST,
    MAP_FULL,
    NO_FIRST_CALL,
    BAD_READS,
    LANES_UNTRACKED,
    COUNTERS
};

// The probes, for counting their hits.
enum hit {
    HIT_EMBEDDING_FIRST,
    HIT_EMBEDDING_RETURN,
    HIT_EMBEDDING,
    HIT_GRAPH,
    HIT_CAPTURE,
    HIT_SYNC,
    HIT_SYNC_RETURN,
    HIT_COPY,
    HIT_COPY_RETURN,
    HIT_COPY_ASYNC,
    HIT_EVENT,
    HIT_ATTENTION,
    HIT_LAUNCH,
    HIT_OPERATOR,
    HIT_TENSOR,
    HIT_ARRAY,
    HIT_CLIENT,
    HIT_TRANSFER,
    HITS
};

struct tensor {
    u32 ndim;
    s32 dtype;
    s64 dims[FLEXNPU_STEP_DIMS];
};

struct evidence {
    u64 t_first;
    u64 model;
    u32 ndim;
    u32 flags;
    s64 dims[FLEXNPU_STEP_DIMS];  // of the embedding's indices
    s64 rows, columns;            // of the embedding's table
    u32 arrays;
    u32 attentions;  // calls of attention operators that were looked at
    struct flexnpu_step_array array[FLEXNPU_STEP_ARRAYS];
    s64 query[FLEXNPU_STEP_DIMS];  // dimensions of an attention operator's query
    u32 query_ndim;
    u32 pad;
    char query_layout[FLEXNPU_STEP_LAYOUT];
};

struct lane_key {
    u64 tgid;
    u64 stream;
};

struct totals {
    u64 launches, graphs, h2d, d2h, h2d_copies;
};

// What a wait waits for: what was on a stream at a time, and on the one that it had waited for itself.
struct mark {
    u64 stream, t;
    struct totals at;
    u64 follows;  // 0: none
    u64 follows_stream, follows_t;
    struct totals follows_at;
};

struct thread {
    u32 at;  // tensors made
    u32 in_sync;
    struct tensor tensor[TENSORS];
    u64 evidence;      // id of the evidence that this thread's arrays belong to
    u64 attention;     // the same id when an attention operator opened it
    u64 first_call;    // executor** of a first call that has not returned
    u64 stream;        // the last one that this thread synchronised or launched on
    struct mark wait;  // of the synchronise that runs
    u64 t_wait;        // when it was called
    u64 capture_stream;
    u64 capture_model;  // aclmdlRI* of a capture end that has not returned
    u32 sync_kind;      // 1 stream, 2 device, 3 copy to the host, 4 event
    u32 has_stream;
    u64 graph_stream;
    u64 copying;  // address at which a copy was entered whose return will be probed
    u32 updates;  // it launched a graph, on that stream: lengths that it passes now are of that step
    u32 pad;
};

struct lane {
    struct totals now;   // since the lane was first seen
    struct totals base;  // at the running step's beginning
    struct totals cand;  // at the point that is taken to end it
    struct totals
        later;  // at a better one, if what was copied to the device before it was not the next step's
    struct totals entered;  // when a device synchronise was called last
    u64 cand_at, cand_t;    // when that point was passed by who launches, and when it was over; 0: not yet
    u64 later_at, later_t;
    // The step was over at `perhaps_t`, unless the wait for what was copied out since then says that more
    // ran: a quarter of `perhaps_run` at least. 0: no such question.
    u64 perhaps_t, perhaps_run;
    u64 pending_perhaps_t, pending_perhaps_run;
    u64 pending_at;  // of a step whose launches are over, and whose end is not (`pendings`); 0: none
    u64 t_open, t_last, t_sync_in, t_sync_out;
    u64 t_opened;     // when what opens the step was launched; its first call may be earlier
    u64 t_point;      // when a point was looked at last
    u64 t_entered;    // when a device synchronise was called last
    u64 t_base;       // the end of the step before
    u64 t_counted;    // when the counting of the running step began
    u64 run_start;    // weight at the last point
    u64 run_longest;  // weight, or ns
    u64 usual;        // ns from opening to end of the last model step
    u64 seq;
    u64 evidence;       // id; 0 for a graph's as long as it is that of its capture
    u64 model;          // the graph that opened the step
    s64 rows, columns;  // the table that opened it
    u64 input;          // when input came after the step's result; 0: none has
    u64 t_input, t_input_last;
    u64 main, follows_t;  // of a side lane: the model's stream, and up to where it has waited for it
    struct totals follows_at;
    u32 kind;
    u32 has_model;
    u32 capturing;
    u32 joined;  // an embedding was seen
    u32 pieces;  // the graph that opened the step may be one of several
    u32 result;  // something of the step was copied to the host
    u32 side;    // it waits for a model's lane, and has no steps of its own
    u32 pad;
};

struct record {
    u64 t_start, t_end, t_base, seq;
    struct lane_key key;
    u32 kind, ended_by;
    struct totals work;
    struct evidence evidence;
    u64 t_counted;
};

struct process {
    u64 lanes;
    u64 stream[PROCESS_LANES];
    u64 captured;  // the last graph that was captured with an embedding
};

struct handle_key {
    u64 tgid;
    u64 handle;
};

// What a first call showed, kept for second calls of a cached executor, whose first calls the program leaves
// out.
struct shape {
    u64 evidence;  // id
    u32 ndim;
    u32 flags;
    s64 dims[FLEXNPU_STEP_DIMS];
    s64 rows, columns;
};

// What the tracer says of an attached process.
struct target {
    u32 counted;  // every launch is probed, all the time
    u32 pad;
};

struct operator_key {
    u64 tgid;
    u64 stream;
    u64 operator;
};

struct hits {
    u64 of[HITS];
};

// In the ring, among records whose first word is a time: this bit says whose it is.
#define CLIENT_MARK (1ULL << 63)
struct client_record {
    u64 tgid;  // | CLIENT_MARK
    struct flexnpu_step_record step;
};

#define TRANSFER_MARK (1ULL << 62)
// Memory moved from one engine to another, by a thread that waited for it.
struct transfer_record {
    u64 tgid;  // | TRANSFER_MARK
    u64 t_start, t_end;
};

// The name of an operator of the client.
struct client_name {
    char text[64];
};
