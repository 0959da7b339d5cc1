// What the step programs share: maps, lanes, records, counters. The tracer puts this file before cann.c and client.c
// and compiles them as one. Together they fold the AscendCL calls of a traced process into steps: one record a step,
// whatever the number of launches.
//
// A lane is a stream of a process. Its running step begins and ends as `probes/phases.py` describes; in short:
//   - the second call of an embedding opens a step, and so does the launch of a whole captured graph;
//   - a synchronise that ends the longest run of launches so far is where the step is taken to end; it is not
//     known to have ended before the next one opens, because a forward pass may synchronise in its middle;
//   - a step opened by a graph, or on a lane that never showed an embedding, ends at the first synchronise.
//
// A lane's totals only grow, and a step is the difference between two points of them, so a launch that races with
// the closing of a step is counted in the next one and never lost.
//
// Programs on uprobes can be preempted, and another one may then run on the same CPU. So nothing is kept in per-CPU
// scratch memory, and even per-CPU counters are added to atomically.
//
// Only registers and user memory are read: no kernel structure, so headers of any version will do.
// EVENTS_RING is defined where the kernel has ring buffers; TARGET_PIDNS_DEV and _INO where the tracer does not run
// in the first pid namespace.

#include <uapi/linux/ptrace.h>

#define MAX_DIMS 4        // dimensions kept of a tensor
#define TENSORS 4         // tensors remembered a thread: an embedding makes three
#define ARRAYS 3          // integer arrays kept a step
#define ARRAY_VALUES 128  // values looked at in an integer array
#define PROCESS_LANES 8   // lanes that one device synchronise ends
#define TABLE_WINDOW 64   // launches within which a second embedding table belongs to the same step

#define ACL_INT32 3
#define ACL_INT64 9
#define H2D 1
#define D2H 2

// Kinds of a record, and of the step that a lane is in. Mirrored in tracer.py.
enum { BETWEEN = 0, EMBEDDING = 1, GRAPH = 2, PLAIN = 3, BEGIN = 4, CAPTURE = 5 };
// What ended a step. Mirrored in tracer.py.
enum { BY_SYNC = 0, BY_NEXT = 1, BY_GRAPH = 2, BY_GAP = 3, BY_NONE = 4 };
// Evidence flags. Mirrored in tracer.py.
enum { HAS_INDICES = 1, HAS_TABLE = 2, HAS_OUTPUT = 4, FROM_CAPTURE = 8 };

// Counters, added up over CPUs by the tracer. Mirrored in tracer.py.
enum { STEPS_SENT, STEPS_LOST, BEGINS_LOST, MAP_FULL, NO_FIRST_CALL, BAD_READS, LANES_UNTRACKED, COUNTERS };

struct tensor {
    u32 ndim;
    s32 dtype;
    s64 dims[MAX_DIMS];
};

// An integer array of positive values: sequence lengths, or their running sum.
struct array {
    u32 n;       // values
    u32 seen;    // values looked at
    u32 ones;    // differences between neighbours (the first: to 0) that are 1
    u32 rising;  // strictly
    s64 first, last, max, sum;
};

struct evidence {
    u64 t_first;
    u64 model;
    u32 ndim;
    u32 flags;
    s64 dims[MAX_DIMS];   // of the embedding's indices
    s64 rows, columns;    // of the embedding's table
    u32 arrays;
    u32 pad;
    struct array array[ARRAYS];
};

struct thread {
    u32 at;             // tensors made
    u32 in_sync;
    struct tensor tensor[TENSORS];
    u64 evidence;       // id of the evidence that this thread's arrays belong to
    u64 first_call;     // executor** of a first call that has not returned
    u64 stream;         // the last one that this thread synchronised or launched on
    u64 sync_stream;
    u64 capture_stream;
    u64 capture_model;  // aclmdlRI* of a capture end that has not returned
    u32 sync_kind;      // 1 stream, 2 device, 3 copy to the host
    u32 has_stream;
};

struct lane_key {
    u64 tgid;
    u64 stream;
};

struct totals {
    u64 launches, graphs, h2d, d2h, h2d_copies;
};

struct lane {
    struct totals now;    // since the lane was first seen
    struct totals base;   // at the running step's beginning
    struct totals cand;   // at the synchronise that is taken to end it
    u64 cand_t;
    u64 t_open, t_last, t_sync_in, t_sync_out;
    u64 run_start;        // launches + graphs at the last synchronise
    u64 run_longest;
    u64 seq;
    u64 evidence;         // id
    u64 opened_at;        // launches when the step opened
    s64 rows, columns;    // the table that opened it
    u32 kind;
    u32 has_model;
    u32 capturing;
    u32 joined;           // an embedding was seen
};

struct record {
    u64 t_start, t_end, seq;
    struct lane_key key;
    u32 kind, ended_by;
    struct totals work;
    struct evidence evidence;
};

struct process {
    u64 lanes;
    u64 stream[PROCESS_LANES];
};

struct handle_key {
    u64 tgid;
    u64 handle;
};

BPF_HASH(lanes, struct lane_key, struct lane, 1024);
BPF_HASH(threads, u64, struct thread, 16384);
BPF_HASH(processes, u64, struct process, 1024);
BPF_TABLE("lru_hash", u64, struct evidence, evidences, 16384);
BPF_TABLE("lru_hash", struct handle_key, u64, executors, 16384);
BPF_TABLE("lru_hash", struct handle_key, struct evidence, models, 4096);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_ARRAY(evidence_ids, u64, 1);
// What new entries are made of: too large for the stack. Never written.
BPF_ARRAY(no_lane, struct lane, 1);
BPF_ARRAY(no_thread, struct thread, 1);
BPF_ARRAY(no_process, struct process, 1);
BPF_ARRAY(no_evidence, struct evidence, 1);

#ifdef EVENTS_RING
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
#else
BPF_PERF_OUTPUT(events);
BPF_PERCPU_ARRAY(scratch, struct record, 1);
#endif

static inline void count(int which)
{
    u64 *value = counters.lookup(&which);
    if (value)
        __sync_fetch_and_add(value, 1);
}

static inline u64 pid_tgid(void)
{
#ifdef TARGET_PIDNS_INO
    struct bpf_pidns_info ns = {};
    if (bpf_get_ns_current_pid_tgid(TARGET_PIDNS_DEV, TARGET_PIDNS_INO, &ns, sizeof(ns)) == 0)
        return ((u64)ns.tgid << 32) | ns.pid;
#endif
    return bpf_get_current_pid_tgid();
}

static inline struct thread *this_thread(u64 id)
{
    struct thread *t = threads.lookup(&id);
    if (t)
        return t;
    int zero = 0;
    struct thread *fresh = no_thread.lookup(&zero);
    if (!fresh)
        return 0;
    threads.insert(&id, fresh);
    t = threads.lookup(&id);
    if (!t)
        count(MAP_FULL);
    return t;
}

static inline struct lane *this_lane(struct lane_key *key)
{
    struct lane *lane = lanes.lookup(key);
    if (lane)
        return lane;
    int zero = 0;
    struct lane *fresh = no_lane.lookup(&zero);
    struct process *none = no_process.lookup(&zero);
    if (!fresh || !none)
        return 0;
    lanes.insert(key, fresh);
    lane = lanes.lookup(key);
    if (!lane) {
        count(MAP_FULL);
        return 0;
    }
    u64 tgid = key->tgid;
    struct process *p = processes.lookup(&tgid);
    if (!p) {
        processes.insert(&tgid, none);
        p = processes.lookup(&tgid);
        if (!p) {
            count(MAP_FULL);
            return lane;
        }
    }
    u64 slot = __sync_fetch_and_add(&p->lanes, 1);
    if (slot < PROCESS_LANES)
        p->stream[slot] = key->stream;
    else
        count(LANES_UNTRACKED);
    return lane;
}

// Makes an evidence and returns it; its id goes to `id`.
static inline struct evidence *new_evidence(u64 *id, struct evidence *model)
{
    int zero = 0;
    u64 *next = evidence_ids.lookup(&zero);
    struct evidence *fresh = no_evidence.lookup(&zero);
    if (!next || !fresh)
        return 0;
    u64 made = __sync_fetch_and_add(next, 1) + 1;
    *id = made;
    evidences.update(&made, model ? model : fresh);
    return evidences.lookup(&made);
}

static inline void send(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u32 kind, u64 t_end,
                        u32 ended_by, struct totals *end)
{
    u64 id = lane->evidence;
    struct evidence *e = id ? evidences.lookup(&id) : 0;
#ifdef EVENTS_RING
    struct record *r = events.ringbuf_reserve(sizeof(struct record));
    if (!r) {
        count(kind == BEGIN ? BEGINS_LOST : STEPS_LOST);
        return;
    }
    __builtin_memset(r, 0, sizeof(*r));
#else
    // Kernels without ring buffers run these programs with preemption off, so scratch memory is safe there.
    int zero = 0;
    struct record *r = scratch.lookup(&zero);
    if (!r)
        return;
    __builtin_memset(r, 0, sizeof(*r));
#endif
    r->t_start = lane->t_open;
    r->t_end = t_end;
    r->seq = lane->seq;
    r->key = *key;
    r->kind = kind;
    r->ended_by = ended_by;
    r->work.launches = end->launches - lane->base.launches;
    r->work.graphs = end->graphs - lane->base.graphs;
    r->work.h2d = end->h2d - lane->base.h2d;
    r->work.d2h = end->d2h - lane->base.d2h;
    r->work.h2d_copies = end->h2d_copies - lane->base.h2d_copies;
    if (e)
        r->evidence = *e;
#ifdef EVENTS_RING
    events.ringbuf_submit(r, 0);
    if (kind != BEGIN)
        count(STEPS_SENT);
#else
    if (events.perf_submit(ctx, r, sizeof(*r)))
        count(kind == BEGIN ? BEGINS_LOST : STEPS_LOST);
    else if (kind != BEGIN)
        count(STEPS_SENT);
#endif
}

// Ends the running step at `end`; what came after belongs to the next one.
static inline void close_step(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u64 t_end, u32 ended_by,
                              struct totals *end)
{
    u32 kind = lane->capturing ? CAPTURE : lane->kind == BETWEEN ? PLAIN : lane->kind;
    send(ctx, key, lane, kind, t_end, ended_by, end);
    if (lane->evidence) {
        u64 id = lane->evidence;
        evidences.delete(&id);
    }
    lane->base = *end;
    lane->seq += 1;
    lane->kind = BETWEEN;
    lane->evidence = 0;
    lane->cand_t = 0;
    lane->t_open = 0;
    lane->run_longest = 0;
}

// Ends whatever runs on the lane because something new begins.
static inline void close_for_next(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u32 ended_by)
{
    if (lane->kind == BETWEEN)
        return;  // what was launched between steps counts in the step that now begins
    if (lane->cand_t) {
        struct totals end = lane->cand;
        close_step(ctx, key, lane, lane->cand_t, BY_SYNC, &end);
    } else {
        struct totals end = lane->now;
        close_step(ctx, key, lane, lane->t_last, ended_by, &end);
    }
}

static inline void open_step(struct lane *lane, u32 kind, u64 now, u64 evidence)
{
    lane->kind = kind;
    lane->evidence = evidence;
    lane->t_open = now;
    lane->cand_t = 0;
    lane->run_longest = 0;
    lane->run_start = lane->now.launches + lane->now.graphs;
    lane->opened_at = lane->now.launches;
}

static inline int add_work(struct pt_regs *ctx, u64 id, u64 stream, int graph)
{
    struct lane_key key = {.tgid = id >> 32, .stream = stream};
    struct lane *lane = this_lane(&key);
    if (!lane)
        return 0;
    u64 now = bpf_ktime_get_ns();
    // Plain work without a synchronise is cut where the lane was idle.
    if (lane->kind == BETWEEN && !lane->has_model && lane->t_open && lane->t_sync_in <= lane->t_sync_out &&
        now - lane->t_last > GAP_NS) {
        struct totals end = lane->now;
        close_step(ctx, &key, lane, lane->t_last, BY_GAP, &end);
    }
    if (graph)
        __sync_fetch_and_add(&lane->now.graphs, 1);
    else
        __sync_fetch_and_add(&lane->now.launches, 1);
    lane->t_last = now;
    if (!lane->t_open)
        lane->t_open = now;
    return 0;
}
