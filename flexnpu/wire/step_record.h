// A step as FlexNPU's client tells it: one layout for the client (C++), the BPF programs (C) and the tracer,
// which reads this file (probes/steps/raw.py). Plain C; numbers are the machine's own, little-endian.
//
// Fields are added at the end, with a new version; `size` is the whole record's.
#pragma once

#ifndef FLEXNPU_BPF
#include <stdint.h>
#endif

#define FLEXNPU_STEP_VERSION 1
#define FLEXNPU_STEP_DIMS 4    // dimensions kept of a shape
#define FLEXNPU_STEP_ARRAYS 3  // arrays of lengths kept of a step
#define FLEXNPU_STEP_LAYOUT 8  // characters kept of the name of a query's layout

enum flexnpu_step_kind {
    FLEXNPU_STEP_BEGIN = 1,  // a step has opened
    FLEXNPU_STEP_MAYBE =
        2,  // as it is if the last synchronise was its end: never told, see flexnpu_step_table
    FLEXNPU_STEP_DONE = 3,  // it is over
};
enum flexnpu_step_opening {
    FLEXNPU_STEP_PLAIN = 0,
    FLEXNPU_STEP_EMBEDDING = 1,
    FLEXNPU_STEP_GRAPH = 2,
    FLEXNPU_STEP_CAPTURE = 3,    // what was launched went into a graph and did not run
    FLEXNPU_STEP_ATTENTION = 4,  // by an attention operator: the model's embedding is another operator
};
enum flexnpu_step_end {
    FLEXNPU_STEP_BY_SYNC = 0,
    FLEXNPU_STEP_BY_NEXT = 1,   // the next step opened, and nothing was synchronised before
    FLEXNPU_STEP_BY_GRAPH = 2,  // by a graph's launch or capture
    FLEXNPU_STEP_BY_GAP = 3,    // the lane was silent
    FLEXNPU_STEP_NOT = 4,
};
enum flexnpu_step_flags {
    FLEXNPU_STEP_HAS_INDICES = 1,   // of an embedding: dims
    FLEXNPU_STEP_HAS_TABLE = 2,     // rows, columns
    FLEXNPU_STEP_AGREED = 4,        // indices [...], table [V, H] and result [..., H] fit
    FLEXNPU_STEP_FROM_CAPTURE = 8,  // all of this is from the graph's capture
    FLEXNPU_STEP_HAS_QUERY = 16,    // of an attention operator
};
enum flexnpu_step_role { FLEXNPU_STEP_NO_ROLE = 0, FLEXNPU_STEP_QUERY = 1, FLEXNPU_STEP_KV = 2 };

// An array of positive integers that an attention operator was given: sequence lengths, or their running sum.
// Zeros behind KV lengths stand for sequences that are padding; they are in none of the other fields.
struct flexnpu_step_array {
    uint32_t n;
    uint32_t seen;    // values looked at
    uint32_t ones;    // differences between neighbours (of the first to 0) that are 1
    uint32_t rising;  // bit 0: strictly; bits 8 to 15: flexnpu_step_role; 16 and up: zeros behind the values
    int64_t first, last, max, sum;
};

struct flexnpu_step_evidence {
    uint32_t flags;  // flexnpu_step_flags
    uint32_t ndim;   // of the embedding's indices
    int64_t dims[FLEXNPU_STEP_DIMS];
    int64_t rows, columns;             // of the embedding's table
    int64_t query[FLEXNPU_STEP_DIMS];  // dimensions of the query of the step's first attention operator
    uint32_t query_ndim;
    uint32_t arrays;
    struct flexnpu_step_array array[FLEXNPU_STEP_ARRAYS];
    char layout[FLEXNPU_STEP_LAYOUT];  // of the query, as the operator was told it; no zero at the end if
                                       // longer
};

// Times are CLOCK_MONOTONIC, ns.
struct flexnpu_step_record {
    uint32_t version;
    uint32_t size;
    uint32_t kind;      // flexnpu_step_kind
    uint32_t opening;   // flexnpu_step_opening
    uint32_t ended_by;  // flexnpu_step_end
    uint32_t reserved;
    uint64_t t_start;  // the first call that belongs to it
    uint64_t t_end;    // 0 in a BEGIN
    uint64_t t_last;   // its last launch
    uint64_t t_base;  // since when launches and copies are counted: the end of the lane's step before; 0: not
                      // known
    uint64_t stream;  // as the program knows it
    uint64_t seq;     // of the lane's steps, whether anybody listened or not
    uint64_t launches;  // operators
    uint64_t graphs;
    uint64_t h2d, d2h;  // bytes
    uint64_t h2d_copies;
    uint64_t lane_work;  // operators and graphs launched on the lane ever, up to the step's end
    uint64_t gated_ns;   // how long the daemon's gate held the lane's head meanwhile; UINT64_MAX: not known
    uint64_t model;      // the graph that was launched
    struct flexnpu_step_evidence evidence;
};

// Of each lane its running step, as it is if the synchronise that returned last was its end. That is told
// when the next one opens; a reader of the program's memory finds it here, where the lane has gone silent.
// Written while somebody listens. A reader copies an entry from its beginning to its end; if `done` and
// `begun` differ, it met a writer.
struct flexnpu_step_entry {
    uint64_t done;
    struct flexnpu_step_record record;  // version 0: there was none yet
    uint64_t begun;
};
struct flexnpu_step_table {
    uint32_t version;
    uint32_t size;     // of an entry
    uint32_t entries;  // that may be written
    uint32_t reserved;
    struct flexnpu_step_entry* entry;
};
#define FLEXNPU_STEP_ENTRIES 64  // lanes beyond have none
