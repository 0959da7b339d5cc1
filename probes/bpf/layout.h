// Reads a tensor's dimensions and data type, and an integer array's values, by a layout that was learned at
// attach (see probes/steps/layouts.py, which reads these structures here). Only user memory is read.
#pragma once

#define VECTOR_INLINE 0
#define VECTOR_POINTER 1
#define VECTOR_SMALL 2

struct vector_layout {
    u32 kind;
    s32 offset;  // of the values, or of the pointer to them, from the base
    s32 hop;     // offset in the object of the pointer to the base; -1: the object is the base
    s32 count;   // offset of the count from the base; -1: an end pointer tells it
    u32 width;   // bytes of the count
    s32 end;     // offset of the end pointer from the base; -1: the count tells it
    u32 inline_max;
    s32 spill;
};

struct layout {
    u32 has_tensor, has_int_array;
    struct vector_layout dims;
    s32 dtype;
    u32 dtype_width;
    s32 dtype_hop;
    u32 pad;
    struct vector_layout ints;
};

static inline int read_pointer(u64 from, u64* value) {
    *value = 0;
    return bpf_probe_read_user(value, sizeof(*value), (void*)from) || !*value;
}

// Little-endian, as x86-64 and aarch64 are.
static inline int read_number(u64 from, u32 width, u32* value) {
    *value = 0;
    if (width == 1) return bpf_probe_read_user(value, 1, (void*)from);
    if (width == 2) return bpf_probe_read_user(value, 2, (void*)from);
    return bpf_probe_read_user(value, 4, (void*)from);
}

// The address of an object's values and their number. Non-zero when memory could not be read.
static inline int find_vector(struct vector_layout* l, u64 object, u64* values, u32* count) {
    u64 base = object, end = 0;
    *values = 0;
    *count = 0;
    if (!object) return 1;
    if (l->hop >= 0 && read_pointer(object + l->hop, &base)) return 1;
    if (l->count >= 0 && read_number(base + l->count, l->width, count)) return 1;
    if (l->kind == VECTOR_POINTER) {
        if (l->count >= 0 && *count == 0) return 0;  // an empty vector may have no memory
        if (bpf_probe_read_user(values, sizeof(*values), (void*)(base + l->offset))) return 1;
    } else if (l->kind == VECTOR_SMALL && *count > l->inline_max) {
        if (read_pointer(base + l->spill, values)) return 1;
    } else {
        *values = base + l->offset;
    }
    if (l->count < 0) {
        if (bpf_probe_read_user(&end, sizeof(end), (void*)(base + l->end)) || end < *values) return 1;
        *count = (end - *values) >> 3;
    }
    return 0;
}

// The data type of a tensor. Non-zero when memory could not be read.
static inline int find_dtype(struct layout* l, u64 object, s32* dtype) {
    u64 base = object;
    u32 value = 0;
    if (!object || (l->dtype_hop >= 0 && read_pointer(object + l->dtype_hop, &base))) return 1;
    if (read_number(base + l->dtype, l->dtype_width, &value)) return 1;
    *dtype = value;
    return 0;
}
