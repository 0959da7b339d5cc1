// What the step programs share: maps, lanes, records, counters. The tracer puts this file before cann.c and client.c
// and compiles them as one. Together they fold the AscendCL calls of a traced process into steps: one record a step,
// whatever the number of launches.
//
// A lane is a stream of a process. Its running step begins and ends as `probes/steps/phases.py` describes; in short:
//   - the second call of an embedding opens a step, and so does the launch of a whole captured graph;
//   - a synchronise that ends the longest run of work so far is where the step is taken to end; it is not
//     known to have ended before the next one opens, because a forward pass may synchronise in its middle;
//   - a step opened by a graph or by an attention operator, and plain work, ends at the first synchronise.
// A run is measured in launches where every launch is probed (`struct target`), else in time.
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
#define ATTENTIONS 2      // attention calls looked at in a step: one kernel for prompts, one for tokens
#define LAYOUT_CHARS 8    // of an attention operator's name of its layout
#define PLAIN_WAIT_NS 100000  // a synchronise that waited so long waited for work that no probe saw

#define ACL_INT32 3
#define ACL_INT64 9
#define H2D 1
#define D2H 2

// Kinds of a record, and of the step that a lane is in. Mirrored in records.py.
enum { BETWEEN = 0, EMBEDDING = 1, GRAPH = 2, PLAIN = 3, BEGIN = 4, CAPTURE = 5, ATTENTION = 6 };
// What ended a step. Mirrored in records.py.
enum { BY_SYNC = 0, BY_NEXT = 1, BY_GRAPH = 2, BY_GAP = 3, BY_NONE = 4 };
// Evidence flags. Mirrored in records.py.
enum { HAS_INDICES = 1, HAS_TABLE = 2, HAS_OUTPUT = 4, FROM_CAPTURE = 8, HAS_QUERY = 16, REMEMBERED = 32 };
// What an attention operator says of an array of lengths; above the bit of `rising`. Mirrored in records.py.
enum { ROLE_NONE = 0, ROLE_QUERY = 1, ROLE_KV = 2 };

// Counters, added up over CPUs by the tracer. Mirrored in records.py.
enum {
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

// The probes, for counting their hits. In the order of plan.py's `PROBES`.
enum {
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
    HIT_ATTENTION,
    HIT_LAUNCH,
    HIT_OPERATOR,
    HIT_TENSOR,
    HIT_ARRAY,
    HIT_CLIENT,
    HITS
};

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
    u32 rising;  // bit 0: strictly; bits 8 and up: its role
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
    u32 attentions;       // calls of attention operators that were looked at
    struct array array[ARRAYS];
    s64 query[MAX_DIMS];  // dimensions of an attention operator's query
    u32 query_ndim;
    u32 pad;
    char query_layout[LAYOUT_CHARS];
};

struct thread {
    u32 at;             // tensors made
    u32 in_sync;
    struct tensor tensor[TENSORS];
    u64 evidence;       // id of the evidence that this thread's arrays belong to
    u64 attention;      // the same id when an attention operator opened it
    u64 first_call;     // executor** of a first call that has not returned
    u64 stream;         // the last one that this thread synchronised or launched on
    u64 sync_stream;
    u64 capture_stream;
    u64 capture_model;  // aclmdlRI* of a capture end that has not returned
    u32 sync_kind;      // 1 stream, 2 device, 3 copy to the host
    u32 has_stream;
    u64 graph_stream;
    u64 copying;        // address at which a copy was entered whose return will be probed
    u32 updates;        // it launched a graph, on that stream: lengths that it passes now are of that step
    u32 pad;
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
    u64 t_base;           // when the counting of the running step began: the end of the one before
    u64 run_start;        // launches + graphs at the last synchronise
    u64 run_longest;      // launches, or ns
    u64 usual;            // ns from opening to end of the last model step
    u64 seq;
    u64 evidence;         // id; 0 for a graph's as long as it is that of its capture
    u64 model;            // the graph that opened the step
    s64 rows, columns;    // the table that opened it
    u32 kind;
    u32 has_model;
    u32 capturing;
    u32 joined;           // an embedding was seen
};

struct record {
    u64 t_start, t_end, t_base, seq;
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

// What a first call showed, kept for second calls of a cached executor, whose first calls the program leaves out.
struct shape {
    u64 evidence;  // id
    u32 ndim;
    u32 flags;
    s64 dims[MAX_DIMS];
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

BPF_HASH(lanes, struct lane_key, struct lane, 1024);
BPF_HASH(threads, u64, struct thread, 16384);
BPF_HASH(processes, u64, struct process, 1024);
BPF_TABLE("lru_hash", u64, struct evidence, evidences, 16384);
BPF_TABLE("lru_hash", struct handle_key, struct shape, executors, 16384);
BPF_TABLE("lru_hash", struct handle_key, struct evidence, models, 4096);
BPF_HASH(targets, u64, struct target, TARGETS);
BPF_HASH(layouts, u64, struct layout, TARGETS);
BPF_TABLE("percpu_hash", u64, struct hits, hits, TARGETS);
BPF_HASH(operators, struct operator_key, u64, 8192);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_ARRAY(evidence_ids, u64, 1);
BPF_ARRAY(unread, u64, 1);  // bytes put into the ring since the reader was last woken
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

static inline void add(int which, u64 amount)
{
    u64 *value = counters.lookup(&which);
    if (value)
        __sync_fetch_and_add(value, amount);
}

static inline void count(int which)
{
    add(which, 1);
}

// Counts a probe's hit, in processes that the tracer knows.
static inline void hit(u64 id, int which)
{
    u64 tgid = id >> 32;
    struct hits *h = hits.lookup(&tgid);
    if (h)
        __sync_fetch_and_add(&h->of[which], 1);
}

static inline int is_counted(u64 tgid)
{
    struct target *t = targets.lookup(&tgid);
    return t && t->counted;
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

// What is known of the graph that opened the lane's step, or 0.
static inline struct evidence *of_graph(struct lane_key *key, struct lane *lane)
{
    if (lane->kind != GRAPH)
        return 0;
    struct handle_key model = {.tgid = key->tgid, .handle = lane->model};
    return models.lookup(&model);
}

// Makes what is known of a graph, if anything, the evidence of a step of it.
static inline void tell_graph(struct evidence *e, struct lane *lane, int learned)
{
    if (learned)
        e->flags |= FROM_CAPTURE;
    e->t_first = lane->t_open;
    e->model = lane->model;
    e->arrays = 0;
    e->attentions = 0;
}

#ifdef EVENTS_RING
// How a record of `size` bytes is put into the ring. A wake-up costs the traced thread five times what the record does
// (5 us, measured on a virtual machine). So only an opening wakes the reader, and what could fill the ring; else it
// looks for itself every now and then.
static inline u64 wake_for(int opening, u64 size)
{
    int zero = 0, wake = opening;
    u64 *waiting = unread.lookup(&zero);
    if (waiting) {
        if (__sync_fetch_and_add(waiting, size) > RING_PAGES * 4096ull / 8)
            wake = 1;
        if (wake)
            *waiting = 0;
    }
    return wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}
#endif

static inline void send(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u32 kind, u64 t_end,
                        u32 ended_by, struct totals *end)
{
    u64 id = lane->evidence;
    struct evidence *e = id ? evidences.lookup(&id) : of_graph(key, lane);
#ifdef EVENTS_RING
    struct record *r = events.ringbuf_reserve(sizeof(struct record));
    if (!r) {
        count(kind == BEGIN ? BEGINS_LOST : STEPS_LOST);
        if (kind != BEGIN)
            add(LAUNCHES_LOST, end->launches - lane->base.launches);
        return;
    }
#else
    // Kernels without ring buffers run these programs with preemption off, so scratch memory is safe there.
    int zero = 0;
    struct record *r = scratch.lookup(&zero);
    if (!r)
        return;
#endif
    __builtin_memset(r, 0, sizeof(*r));
    r->t_start = lane->t_open;
    r->t_end = t_end;
    r->t_base = lane->t_base;
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
    if (lane->kind == GRAPH && !id)
        tell_graph(&r->evidence, lane, e != 0);
#ifdef EVENTS_RING
    events.ringbuf_submit(r, wake_for(kind == BEGIN, sizeof(struct record)));
    if (kind != BEGIN)
        count(STEPS_SENT);
#else
    if (events.perf_submit(ctx, r, sizeof(*r))) {
        count(kind == BEGIN ? BEGINS_LOST : STEPS_LOST);
        if (kind != BEGIN)
            add(LAUNCHES_LOST, r->work.launches);
    } else if (kind != BEGIN) {
        count(STEPS_SENT);
    }
#endif
}

// BEGINS is defined where the tracer wants to know of steps that open.
static inline void send_begin(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u64 now)
{
#ifdef BEGINS
    send(ctx, key, lane, BEGIN, now, BY_NONE, &lane->base);
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
    if (lane->kind == EMBEDDING && t_end > lane->t_open)
        lane->usual = t_end - lane->t_open;
    lane->base = *end;
    lane->t_base = t_end;
    lane->seq += 1;
    lane->kind = BETWEEN;
    lane->evidence = 0;
    lane->cand_t = 0;
    lane->t_open = 0;
    lane->run_longest = 0;
}

// Ends whatever runs on the lane because something new begins, at `now`.
static inline void close_for_next(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u32 ended_by, u64 now)
{
    if (lane->kind == BETWEEN)
        return;  // what was launched between steps counts in the step that now begins
    if (lane->cand_t) {
        struct totals end = lane->cand;
        close_step(ctx, key, lane, lane->cand_t, BY_SYNC, &end);
    } else {
        // Without a synchronise its last launch ends it; where launches are not seen, all that is known is that it is
        // over by now.
        struct totals end = lane->now;
        close_step(ctx, key, lane, is_counted(key->tgid) ? lane->t_last : now, ended_by, &end);
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
}

static inline void add_work(struct pt_regs *ctx, struct lane_key *key, struct lane *lane, u64 now, int graph)
{
    if (lane->kind == BETWEEN && is_counted(key->tgid)) {
        // Plain work without a synchronise is cut where the lane was idle.
        if (!lane->has_model && lane->t_open && lane->t_sync_in <= lane->t_sync_out &&
            now - lane->t_last > GAP_NS) {
            struct totals end = lane->now;
            close_step(ctx, key, lane, lane->t_last, BY_GAP, &end);
        }
        if (!lane->t_open)
            lane->t_open = now;
    }
    if (graph)
        __sync_fetch_and_add(&lane->now.graphs, 1);
    else
        __sync_fetch_and_add(&lane->now.launches, 1);
    lane->t_last = now;
}
