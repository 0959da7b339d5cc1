// What the programs are written in: bcc's idioms (map.lookup(&key), BPF_HASH, PT_REGS_PARM1 ...), for two
// compilers.
//
// bcc compiles the programs where they run, from one text, and has these idioms itself. clang compiles the
// same files when FlexNPU is built (-DFLEXNPU_CORE), into objects that libbpf loads: there this header makes
// the idioms. It needs no kernel headers: numbers of helpers and map types, and struct pt_regs, are the
// kernel's stable interface.
//
// The macros PROBE, SYSCALL and RAW go before a program and say what it is attached to.
#pragma once

#ifndef FLEXNPU_CORE

#include <uapi/linux/ptrace.h>

#define PROBE
#define SYSCALL
#define RAW
#define SHARED inline  // bcc has no functions that several programs call
#define LRU_HASH(name, K, V, n) BPF_TABLE("lru_hash", K, V, name, n)
#define PERCPU_HASH(name, K, V, n) BPF_TABLE("percpu_hash", K, V, name, n)
static u64 (*attach_cookie)(void* ctx) = (void*)174;  // BPF_FUNC_get_attach_cookie

#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
typedef u16 uint16_t;
typedef u32 uint32_t;
typedef u64 uint64_t;
typedef s64 int64_t;

#define SEC(name) __attribute__((section(name), used))
#define inline inline __attribute__((always_inline))
#define SHARED __attribute__((noinline))
#ifndef __always_inline
#define __always_inline inline
#endif

#define PROBE SEC("kprobe")
#define SYSCALL SEC("tracepoint")
#define RAW SEC("raw_tp")

char LICENSE[] SEC("license") = "GPL";

struct bpf_pidns_info {
    u32 pid, tgid;
};

// Structures of the kernel whose members' places libbpf fills in. bcc is told them (-DSOCK_FAMILY=...).
#define RELOCATED __attribute__((preserve_access_index))
#define OFFSET_OF(type, member) __builtin_preserve_field_info(((struct type*)0)->member, 0)
#define EXISTS(type, member) __builtin_preserve_field_info(((struct type*)0)->member, 2)

// The processor's registers at a probe.
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags,
        sp, ss;
};
#define PT_REGS_PARM1(ctx) ((ctx)->di)
#define PT_REGS_PARM2(ctx) ((ctx)->si)
#define PT_REGS_PARM3(ctx) ((ctx)->dx)
#define PT_REGS_PARM4(ctx) ((ctx)->cx)
#define PT_REGS_PARM5(ctx) ((ctx)->r8)
#define PT_REGS_PARM6(ctx) ((ctx)->r9)
#define PT_REGS_RC(ctx) ((ctx)->ax)
#define PT_REGS_IP(ctx) ((ctx)->ip)
#define PT_REGS_SP(ctx) ((ctx)->sp)
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
    unsigned long regs[31], sp, pc, pstate;
};
#define PT_REGS_PARM1(ctx) ((ctx)->regs[0])
#define PT_REGS_PARM2(ctx) ((ctx)->regs[1])
#define PT_REGS_PARM3(ctx) ((ctx)->regs[2])
#define PT_REGS_PARM4(ctx) ((ctx)->regs[3])
#define PT_REGS_PARM5(ctx) ((ctx)->regs[4])
#define PT_REGS_PARM6(ctx) ((ctx)->regs[5])
#define PT_REGS_RC(ctx) ((ctx)->regs[0])
#define PT_REGS_IP(ctx) ((ctx)->pc)
#define PT_REGS_SP(ctx) ((ctx)->sp)
#else
#error "no registers are known for this processor: define __TARGET_ARCH_x86 or __TARGET_ARCH_arm64"
#endif

struct bpf_raw_tracepoint_args {
    u64 args[0];
};

// The kernel's helpers, by their numbers.
static void* (*const helper_lookup)(const void* map, const void* key) = (void*)1;
static long (*const helper_update)(const void* map, const void* key, const void* value, u64 flags) = (void*)2;
static long (*const helper_delete)(const void* map, const void* key) = (void*)3;
static u64 (*const bpf_ktime_get_ns)(void) = (void*)5;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void*)14;
static u64 (*const bpf_get_current_task)(void) = (void*)35;
static long (*const bpf_probe_read_user)(void* to, u32 size, const void* from) = (void*)112;
static long (*const bpf_probe_read_kernel)(void* to, u32 size, const void* from) = (void*)113;
static long (*const bpf_probe_read_user_str)(void* to, u32 size, const void* from) = (void*)114;
static long (*const bpf_get_ns_current_pid_tgid)(u64 dev, u64 ino, struct bpf_pidns_info* to,
                                                 u32 size) = (void*)120;
static long (*const helper_ring_output)(const void* ring, void* data, u64 size, u64 flags) = (void*)130;
static void* (*const helper_ring_reserve)(const void* ring, u64 size, u64 flags) = (void*)131;
static void (*const helper_ring_submit)(void* data, u64 flags) = (void*)132;
static void (*const helper_ring_discard)(void* data, u64 flags) = (void*)133;
static u64 (*const attach_cookie)(void* ctx) = (void*)174;

enum { BPF_NOEXIST = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };

// A map `name` is the kernel's `name_map`, and a constant structure `name` of functions, which clang sees
// through: what is left in the object are the helpers' calls.
#define MAP_OF(name, kind, K, V, n)                                                            \
    struct {                                                                                   \
        int (*type)[kind];                                                                     \
        int (*max_entries)[n];                                                                 \
        K* key;                                                                                \
        V* value;                                                                              \
    } name##_map SEC(".maps");                                                                 \
    static inline V* name##_lookup(const K* key) { return helper_lookup(&name##_map, key); }   \
    static inline long name##_update(const K* key, const V* value) {                           \
        return helper_update(&name##_map, key, value, 0);                                      \
    }                                                                                          \
    static inline long name##_insert(const K* key, const V* value) {                           \
        return helper_update(&name##_map, key, value, BPF_NOEXIST);                            \
    }                                                                                          \
    static inline long name##_delete(const K* key) { return helper_delete(&name##_map, key); } \
    static inline V* name##_lookup_or_try_init(const K* key, const V* value) {                 \
        V* found = helper_lookup(&name##_map, key);                                            \
        if (found) return found;                                                               \
        helper_update(&name##_map, key, value, BPF_NOEXIST);                                   \
        return helper_lookup(&name##_map, key);                                                \
    }                                                                                          \
    static const struct {                                                                      \
        V* (*lookup)(const K*);                                                                \
        long (*update)(const K*, const V*);                                                    \
        long (*insert)(const K*, const V*);                                                    \
        long (*delete)(const K*);                                                              \
        V* (*lookup_or_try_init)(const K*, const V*);                                          \
    } name = {name##_lookup, name##_update, name##_insert, name##_delete, name##_lookup_or_try_init}

#define BPF_HASH(name, K, V, n) MAP_OF(name, 1, K, V, n)
#define BPF_ARRAY(name, V, n) MAP_OF(name, 2, int, V, n)
#define PERCPU_HASH(name, K, V, n) MAP_OF(name, 5, K, V, n)
#define BPF_PERCPU_ARRAY(name, V, n) MAP_OF(name, 6, int, V, n)
#define LRU_HASH(name, K, V, n) MAP_OF(name, 9, K, V, n)

// The loader says how large a ring is.
#define BPF_RINGBUF_OUTPUT(name, pages)                                                                \
    struct {                                                                                           \
        int (*type)[27];                                                                               \
        int (*max_entries)[4096];                                                                      \
    } name##_map SEC(".maps");                                                                         \
    static inline void* name##_reserve(u64 size) { return helper_ring_reserve(&name##_map, size, 0); } \
    static inline long name##_output(void* data, u64 size, u64 flags) {                                \
        return helper_ring_output(&name##_map, data, size, flags);                                     \
    }                                                                                                  \
    static const struct {                                                                              \
        void* (*ringbuf_reserve)(u64);                                                                 \
        long (*ringbuf_output)(void*, u64, u64);                                                       \
        void (*ringbuf_submit)(void*, u64);                                                            \
        void (*ringbuf_discard)(void*, u64);                                                           \
    } name = {name##_reserve, name##_output, helper_ring_submit_, helper_ring_discard_}

static inline void helper_ring_submit_(void* data, u64 flags) { helper_ring_submit(data, flags); }

static inline void helper_ring_discard_(void* data, u64 flags) { helper_ring_discard(data, flags); }

#endif
