// What a tracer may put probes on: stable names and arguments. Nothing here is called while no reader has
// raised the point's semaphore. The record that is passed is in `flexnpu/wire/step_record.h`.
//
// A semaphore is a 16-bit word that the kernel itself raises when a probe is attached with its file offset as
// ref_ctr_offset, and lowers when the probe goes, whichever way its owner ends.
#pragma once

#include <stdint.h>

extern "C" {

#include "flexnpu/wire/step_record.h"

inline constexpr uint32_t kFlexnpuStepVersion = FLEXNPU_STEP_VERSION;
inline constexpr uint32_t kFlexnpuStepEntries = FLEXNPU_STEP_ENTRIES;

__attribute__((visibility("default"))) extern flexnpu_step_table flexnpu_step_waiting;

__attribute__((visibility("default"))) extern volatile uint16_t flexnpu_step_semaphore;
__attribute__((visibility("default"))) extern volatile uint16_t flexnpu_step_begin_semaphore;
__attribute__((visibility("default"))) extern volatile uint16_t flexnpu_operator_semaphore;

// DONE.
__attribute__((visibility("default"))) void flexnpu_step(const flexnpu_step_record* record);
// BEGIN, for who must act while a step runs; only beside a listener to flexnpu_step.
__attribute__((visibility("default"))) void flexnpu_step_begin(const flexnpu_step_record* record);
// Before an operator's launch: `name` as in its first call without "GetWorkspaceSize".
__attribute__((visibility("default"))) void flexnpu_operator(const void* stream, const char* name,
                                                             const void* executor);

}  // extern "C"
