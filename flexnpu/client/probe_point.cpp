#include "flexnpu/client/probe_point.hpp"

// Of their own in the file and writable, as the kernel wants them: it finds the word by the mapping of its
// file offset.
__attribute__((section(".probes"), used)) volatile uint16_t flexnpu_step_semaphore = 0;
__attribute__((section(".probes"), used)) volatile uint16_t flexnpu_step_begin_semaphore = 0;
__attribute__((section(".probes"), used)) volatile uint16_t flexnpu_operator_semaphore = 0;

static flexnpu_step_entry step_entries[kFlexnpuStepEntries];
__attribute__((section(".probes"), used)) flexnpu_step_table flexnpu_step_waiting = {
    kFlexnpuStepVersion, sizeof(flexnpu_step_entry), kFlexnpuStepEntries, 0, step_entries};

// The kernel emulates a one-byte nop under a probe (0.8 us); a ret it would single-step (9.5 us).
#define FLEXNPU_POINT __attribute__((noinline, noclone, used))

FLEXNPU_POINT void flexnpu_step(const flexnpu_step_record* record) {
    asm volatile("nop" : : "r"(record) : "memory");
}

FLEXNPU_POINT void flexnpu_step_begin(const flexnpu_step_record* record) {
    asm volatile("nop" : : "r"(record) : "memory");
}

FLEXNPU_POINT void flexnpu_operator(const void* stream, const char* name, const void* executor) {
    asm volatile("nop" : : "r"(stream), "r"(name), "r"(executor) : "memory");
}
