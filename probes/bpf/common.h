// What the step programs share: maps, lanes, counters, and how a step is told. Together they fold the
// AscendCL calls of a traced process into steps: one record a step, whatever the number of launches.
//
// A lane is a stream of a process. Its running step begins and ends as `probes/steps/phases.py` describes; in
// short:
//   - the second call of an embedding opens a step, and so does the launch of a captured graph that holds
//     one, or before which new input came. Other graphs are pieces of the step that runs;
//   - a step ends at a point of its lane, behind its longest run of work: where somebody waits, or where its
//     result is copied to the host. Points behind the next step's input are not its own. It is not known to
//     have ended before the next one opens, because a forward pass may wait in its middle;
//   - a wait says what is over: all that was launched before the record that it waits for, or before the
//     call. A step whose launches are over is told when a wait says that it is over itself;
//   - a stream that waits for events of a model's lane is a side lane: what is copied there is the model's;
//   - a step opened by a whole graph or by an attention operator, and plain work, ends at the first wait.
// A run is measured in launches where every launch is probed (`struct target`), else in time.
//
// A lane's totals only grow, and a step is the difference between two points of them, so a launch that races
// with the closing of a step is counted in the next one and never lost.
//
// Programs on uprobes can be preempted, and another one may then run on the same CPU. So nothing is kept in
// per-CPU scratch memory, and even per-CPU counters are added to atomically.
//
// Only registers and user memory are read: no kernel structure, so headers of any version will do.
#pragma once

#include "steps_options.h"

#include "layout.h"
#include "pid.h"
#include "records.h"

BPF_HASH(lanes, struct lane_key, struct lane, 1024);
BPF_HASH(threads, u64, struct thread, 16384);
BPF_HASH(processes, u64, struct process, 1024);
LRU_HASH(evidences, u64, struct evidence, 16384);
LRU_HASH(executors, struct handle_key, struct shape, 16384);
LRU_HASH(models, struct handle_key, struct evidence, 4096);
LRU_HASH(marks, struct handle_key, struct mark, 16384);
LRU_HASH(pendings, struct lane_key, struct record, 1024);
BPF_HASH(targets, u64, struct target, TARGETS);
BPF_HASH(layouts, u64, struct layout, TARGETS);
PERCPU_HASH(hits, u64, struct hits, TARGETS);
BPF_HASH(operators, struct operator_key, u64, 8192);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_ARRAY(evidence_ids, u64, 1);
BPF_ARRAY(unread, u64, 1);  // bytes put into the ring since the reader was last woken
// What new entries are made of: too large for the stack. Never written.
BPF_ARRAY(no_lane, struct lane, 1);
BPF_ARRAY(no_thread, struct thread, 1);
BPF_ARRAY(no_process, struct process, 1);
BPF_ARRAY(no_evidence, struct evidence, 1);
BPF_ARRAY(no_record, struct record, 1);

#ifdef EVENTS_RING
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
#else
BPF_PERF_OUTPUT(events);
BPF_PERCPU_ARRAY(scratch, struct record, 1);
#endif

static inline void add(int which, u64 amount) {
    u64* value = counters.lookup(&which);
    if (value) __sync_fetch_and_add(value, amount);
}

static inline void count(int which) { add(which, 1); }

// Counts a probe's hit, in processes that the tracer knows.
static inline void hit(u64 id, int which) {
    u64 tgid = id >> 32;
    struct hits* h = hits.lookup(&tgid);
    if (h) __sync_fetch_and_add(&h->of[which], 1);
}

static inline int is_counted(u64 tgid) {
    struct target* t = targets.lookup(&tgid);
    return t && t->counted;
}

static inline struct thread* this_thread(u64 id) {
    struct thread* t = threads.lookup(&id);
    if (t) return t;
    int zero = 0;
    struct thread* fresh = no_thread.lookup(&zero);
    if (!fresh) return 0;
    threads.insert(&id, fresh);
    t = threads.lookup(&id);
    if (!t) count(MAP_FULL);
    return t;
}

static inline struct lane* this_lane(struct lane_key* key) {
    struct lane* lane = lanes.lookup(key);
    if (lane) return lane;
    int zero = 0;
    struct lane* fresh = no_lane.lookup(&zero);
    struct process* none = no_process.lookup(&zero);
    if (!fresh || !none) return 0;
    lanes.insert(key, fresh);
    lane = lanes.lookup(key);
    if (!lane) {
        count(MAP_FULL);
        return 0;
    }
    u64 tgid = key->tgid;
    struct process* p = processes.lookup(&tgid);
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
static inline struct evidence* new_evidence(u64* id, struct evidence* model) {
    int zero = 0;
    u64* next = evidence_ids.lookup(&zero);
    struct evidence* fresh = no_evidence.lookup(&zero);
    if (!next || !fresh) return 0;
    u64 made = __sync_fetch_and_add(next, 1) + 1;
    *id = made;
    evidences.update(&made, model ? model : fresh);
    return evidences.lookup(&made);
}

// What is known of the graph that opened the lane's step, or 0.
static inline struct evidence* of_graph(struct lane_key* key, struct lane* lane) {
    if (lane->kind != GRAPH) return 0;
    struct handle_key model = {.tgid = key->tgid, .handle = lane->model};
    return models.lookup(&model);
}

// Makes what is known of a graph, if anything, the evidence of a step of it.
static inline void tell_graph(struct evidence* e, struct lane* lane, int learned) {
    if (learned) e->flags |= FLEXNPU_STEP_FROM_CAPTURE;
    e->t_first = lane->t_open;
    e->model = lane->model;
    e->arrays = 0;
    e->attentions = 0;
}

#ifdef EVENTS_RING
// How a record of `size` bytes is put into the ring. A wake-up costs the traced thread five times what the
// record does (5 us, measured on a virtual machine). So only an opening wakes the reader, and what could fill
// the ring; else it looks for itself every now and then.
static inline u64 wake_for(int opening, u64 size) {
    int zero = 0, wake = opening;
    u64* waiting = unread.lookup(&zero);
    if (waiting) {
        if (__sync_fetch_and_add(waiting, size) > RING_BYTES / 8) wake = 1;
        if (wake) *waiting = 0;
    }
    return wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}
#endif

// The lane's running step as a record, which is zero.
static inline void fill(struct record* r, struct lane_key* key, struct lane* lane, u32 kind, u64 t_end,
                        u32 ended_by, struct totals* end) {
    u64 id = lane->evidence;
    struct evidence* e = id ? evidences.lookup(&id) : of_graph(key, lane);
    r->t_start = lane->t_open;
    r->t_end = t_end;
    r->t_base = lane->t_base;
    r->t_counted = lane->t_counted;
    r->seq = lane->seq;
    r->key = *key;
    r->kind = kind;
    r->ended_by = ended_by;
    r->work.launches = end->launches - lane->base.launches;
    r->work.graphs = end->graphs - lane->base.graphs;
    r->work.h2d = end->h2d - lane->base.h2d;
    r->work.d2h = end->d2h - lane->base.d2h;
    r->work.h2d_copies = end->h2d_copies - lane->base.h2d_copies;
    if (e) r->evidence = *e;
    if (lane->kind == GRAPH && !id) tell_graph(&r->evidence, lane, e != 0);
}

static inline void lost(u32 kind, u64 launches) {
    count(kind == BEGIN ? BEGINS_LOST : STEPS_LOST);
    if (kind != BEGIN) add(LAUNCHES_LOST, launches);
}

// Tells of the lane's running step or, with `kept`, what that record says.
static inline void send(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u32 kind, u64 t_end,
                        u32 ended_by, struct totals* end, struct record* kept) {
    u64 launches = kept ? kept->work.launches : end->launches - lane->base.launches;
#ifdef EVENTS_RING
    struct record* r = events.ringbuf_reserve(sizeof(struct record));
    if (!r) {
        lost(kind, launches);
        return;
    }
#else
    // Kernels without ring buffers run these programs with preemption off, so scratch memory is safe there.
    int zero = 0;
    struct record* r = scratch.lookup(&zero);
    if (!r) return;
#endif
    if (kept) {
        *r = *kept;
    } else {
        __builtin_memset(r, 0, sizeof(*r));
        fill(r, key, lane, kind, t_end, ended_by, end);
    }
#ifdef EVENTS_RING
    events.ringbuf_submit(r, wake_for(kind == BEGIN, sizeof(struct record)));
    if (kind != BEGIN) count(STEPS_SENT);
#else
    if (events.perf_submit(ctx, r, sizeof(*r)))
        lost(kind, launches);
    else if (kind != BEGIN)
        count(STEPS_SENT);
#endif
}

// BEGINS: the tracer wants to know of steps that open.
static inline void send_begin(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u64 now) {
    if (BEGINS) send(ctx, key, lane, BEGIN, now, FLEXNPU_STEP_NOT, &lane->base, 0);
}

// The step whose launches were over is over itself. `t_end` 0: nobody waited for it, and all that is known is
// that it is over by `now`.
static inline void settle_pending(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u64 t_end,
                                  u64 now) {
    if (!lane->pending_at) return;
    lane->pending_at = 0;
    struct record* kept = pendings.lookup(key);
    if (!kept) return;
    if (!t_end) t_end = lane->pending_perhaps_t;
    kept->t_end = t_end ? t_end : now;
    kept->t_base = lane->t_base;
    kept->ended_by = t_end ? FLEXNPU_STEP_BY_SYNC : FLEXNPU_STEP_BY_NEXT;
    lane->t_base = kept->t_end;
    send(ctx, key, lane, kept->kind, 0, 0, 0, kept);
    pendings.delete(key);
}

// What a step has, and the next one begins without.
static inline void reset(struct lane* lane) {
    lane->cand_at = lane->cand_t = 0;
    lane->later_at = lane->later_t = 0;
    lane->perhaps_t = 0;
    lane->input = 0;
    lane->result = 0;
    lane->run_longest = 0;
}

static inline void forget_step(struct lane* lane, u64 counted, struct totals* end) {
    if (lane->evidence) {
        u64 id = lane->evidence;
        evidences.delete(&id);
    }
    lane->base = *end;
    lane->t_counted = counted;
    lane->seq += 1;
    lane->kind = BETWEEN;
    lane->evidence = 0;
    lane->t_open = 0;
    reset(lane);
}

// Ends the running step at `end`; what came after belongs to the next one.
static inline void close_step(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u64 t_end,
                              u32 ended_by, struct totals* end) {
    u32 kind = lane->capturing ? CAPTURE : lane->kind == BETWEEN ? PLAIN : lane->kind;
    settle_pending(ctx, key, lane, 0, lane->t_open);
    send(ctx, key, lane, kind, t_end, ended_by, end, 0);
    if (lane->kind == EMBEDDING && t_end > lane->t_open) lane->usual = t_end - lane->t_open;
    lane->t_base = t_end;
    forget_step(lane, lane->cand_at && lane->cand_at < t_end ? lane->cand_at : t_end, end);
}

// The running step's launches are over, and the device still has them: it is told when a wait says so.
static inline void park(struct pt_regs* ctx, struct lane_key* key, struct lane* lane) {
    settle_pending(ctx, key, lane, 0, lane->t_open);
    int zero = 0;
    struct record* none = no_record.lookup(&zero);
    if (!none) return;
    pendings.update(key, none);
    struct record* kept = pendings.lookup(key);
    struct totals end = lane->cand;
    if (kept) {
        fill(kept, key, lane, lane->kind, 0, FLEXNPU_STEP_BY_SYNC, &end);
        lane->pending_at = lane->cand_at;
        lane->pending_perhaps_t = lane->perhaps_t;
        lane->pending_perhaps_run = lane->perhaps_run;
    } else {
        lost(lane->kind, end.launches - lane->base.launches);
    }
    if (lane->kind == EMBEDDING && lane->cand_at > lane->t_open) lane->usual = lane->cand_at - lane->t_open;
    forget_step(lane, lane->cand_at, &end);
}

// Ends whatever runs on the lane because something new begins, at `now`.
static inline void close_for_next(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u32 ended_by,
                                  u64 now) {
    if (lane->kind == BETWEEN) return;  // what was launched between steps counts in the step that now begins
    if (lane->cand_at && !lane->cand_t && !lane->capturing) {
        park(ctx, key, lane);
        return;
    }
    // Without a synchronise its last launch ends it; where launches are not seen, all that is known is that
    // it is over by now.
    struct totals end = lane->cand_at ? lane->cand : lane->now;
    u64 t_end = lane->cand_at ? lane->cand_t : is_counted(key->tgid) ? lane->t_last : now;
    close_step(ctx, key, lane, t_end, lane->cand_at ? FLEXNPU_STEP_BY_SYNC : ended_by, &end);
}

static inline u64 weight(struct totals* totals) { return totals->launches + GRAPH_WEIGHT * totals->graphs; }

// `t_open`: its first call; `now`: the launch that opens it.
static inline void open_step(struct lane* lane, u32 kind, u64 t_open, u64 now, u64 evidence) {
    // While the program waited for what it had launched, it could not go on with its input.
    u64 input_last = lane->t_input_last;
    if (lane->t_sync_in >= lane->t_input && lane->t_sync_in <= input_last + INPUT_NS &&
        lane->t_sync_out > input_last)
        input_last = lane->t_sync_out;
    if (lane->t_input && now <= input_last + INPUT_NS && lane->t_input < t_open) t_open = lane->t_input;
    lane->kind = kind;
    lane->evidence = evidence;
    lane->t_open = t_open;
    lane->t_opened = now;
    lane->t_point = now;
    lane->t_input = 0;
    lane->side = 0;
    reset(lane);
    lane->run_start = weight(&lane->now);
}

static inline void add_work(struct pt_regs* ctx, struct lane_key* key, struct lane* lane, u64 now,
                            int graph) {
    if (lane->kind == BETWEEN && is_counted(key->tgid)) {
        // Plain work without a synchronise is cut where the lane was idle.
        if (!lane->has_model && lane->t_open && lane->t_sync_in <= lane->t_sync_out &&
            now - lane->t_last > GAP_NS) {
            struct totals end = lane->now;
            close_step(ctx, key, lane, lane->t_last, FLEXNPU_STEP_BY_GAP, &end);
        }
        if (!lane->t_open) lane->t_open = now;
    }
    if (graph)
        __sync_fetch_and_add(&lane->now.graphs, 1);
    else
        __sync_fetch_and_add(&lane->now.launches, 1);
    lane->t_last = now;
}
