// What passes between the emulated operators (libopapi) and the emulated runtime (libacl_rt).
//
// An operator's second call launches a Kernel:
//
//     Kernel kernel{...};
//     aclrtLaunchKernelWithHostArgs(func, blocks, stream, nullptr, &kernel, sizeof(kernel), nullptr, 0);
//
// The Kernel struct is copied. When the launch returns ACL_SUCCESS the runtime owns `self` and calls
// destroy(self) once, after the last run, on a thread of its own or inside the launch; when it returns an
// error the caller still owns it. run(self) is called on a worker thread of the stream, never concurrently
// with itself, and possibly several times (graph replay), so it must not consume its arguments. In `time`
// mode run is never called.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexnpu::emulator {

// Inputs of the roofline: what the operator asks of the chip, not how long it takes.
struct KernelCost {
    double cube_flops =
        0;  // floating-point (or integer) operations on the matrix unit: 2*M*N*K for a product
    int32_t cube_dtype = 0;   // aclDataType of the product's inputs: chooses the matrix unit's peak
    double vector_flops = 0;  // operations on the vector unit, in elements processed times passes
    double bytes = 0;         // bytes read from and written to device memory
};

// What a task that meets others (a collective, see hccl/) is told by its stream, and tells it.
struct Meeting {
    uint64_t ready_ns = 0;  // device time at which the stream has come to the task
    uint64_t end_ns = 0;    // to be set: device time at which it is over
    // Whether the stream has been aborted: the task must end soon, with an error.
    bool (*cancelled)(const Meeting*) = nullptr;
    // Takes the device's link to the other devices for `duration` ns, at the first free time from `ready` on;
    // the start.
    uint64_t (*reserve_link)(const Meeting*, uint64_t ready, uint64_t duration) = nullptr;
    // The reservation made last turned out to take `extra` ns longer.
    void (*extend_link)(const Meeting*, uint64_t extra) = nullptr;
    void* stream = nullptr;
    uint64_t number = 0;  // of the task in its stream
};

inline constexpr uint64_t kKernelMagic = 0x666c65786b65726eull;

struct Kernel {
    uint32_t op = 0;             // row in the operator table (kOps)
    const char* name = nullptr;  // static storage; appears in error messages
    KernelCost cost;
    bool has_body = true;              // false: takes its time, computes nothing
    int (*run)(void* self) = nullptr;  // returns an ACL error, which becomes the stream's asynchronous error
    void (*destroy)(void* self) = nullptr;
    void* self = nullptr;
    // When set it is called in place of `run`, in both modes, takes as long as it says, and may block: it
    // keeps its stream, not the cores.
    int (*meet)(void* self, Meeting* meeting) = nullptr;
    uint64_t magic = kKernelMagic;  // a launch of anything else is refused
};

enum Mode : int32_t { kModeCompute = 0, kModeTime = 1 };
enum Missing : int32_t { kMissingError = 0, kMissingTime = 1 };

}  // namespace flexnpu::emulator

#pragma GCC visibility push(default)
extern "C" {

// FLEXNPU_EMU_MODE and FLEXNPU_EMU_MISSING as the runtime read them.
int32_t flexnpu_emu_mode(void);
int32_t flexnpu_emu_missing(void);

// Sets the message that aclGetRecentErrMsg gives to the calling thread (printf-like). Returns `error`, so
// that a caller can write `return flexnpu_emu_fail(ACL_ERROR_..., "...", ...)`.
int32_t flexnpu_emu_fail(int32_t error, const char* format, ...) __attribute__((format(printf, 2, 3)));

// 1 when [p, p+size) lies wholly inside one allocation of device memory of this process, else 0.
int32_t flexnpu_emu_is_device_range(const void* p, size_t size);

// The modelled link of one device to the others: bytes a second in each direction, and nanoseconds a step of
// an algorithm.
void flexnpu_emu_link(double* rate, double* step_ns);
// FLEXNPU_EMU_MACHINE as the runtime read it.
const char* flexnpu_emu_machine(void);

// Nanoseconds that the device's compute engine has been busy since the first user opened it, over all
// processes. Returns an ACL error when the device does not exist.
int32_t flexnpu_emu_device_busy_ns(int32_t device, uint64_t* out);
}
#pragma GCC visibility pop
