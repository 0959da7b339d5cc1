// What the exported functions of libhccl share: how a call is refused, how its arguments are checked, and how
// its task is queued.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/emulator/hccl/communicator.hpp"
#include "flexnpu/emulator/hccl/task.hpp"
#include "flexnpu/emulator/runtime/handles.hpp"

namespace flexnpu::emulator::hccl {

// Elements in one call: their bytes, over all ranks, stay far below 2^64.
constexpr uint64_t kMostElements = uint64_t(1) << 44;

// Never destroyed: threads of the program may call until it is gone.
HandleTable<Communicator>& communicators();

// Sets the runtime's error text and returns `result`, an HcclResult.
template <class... Args>
int32_t refuse(int32_t result, const char* format, Args... args) {
    flexnpu_emu_fail(result == flexnpu::hccl::E_NOT_SUPPORT ? acl::API_NOT_SUPPORTED : acl::INVALID_PARAM,
                     format, args...);
    return result;
}

// Nothing may come out of an exported function but its result.
template <class F>
int32_t guarded(const char* function, F f) {
    try {
        return f();
    } catch (const Refusal& refusal) {
        return refuse(refusal.result, "%s: %s", function, refusal.text.c_str());
    } catch (const std::exception& error) {
        return refuse(flexnpu::hccl::E_INTERNAL, "%s: %s", function, error.what());
    }
}

// The communicator of a handle. Null, with `*result` set, if there is none.
std::shared_ptr<Communicator> find(const char* function, HcclComm handle, int32_t* result);

// The arguments of one call, checked one after the other; the first that is wrong is told.
class Check {
public:
    Check(const char* function, HcclComm handle);

    Check& type(int32_t dtype, uint64_t count);
    Check& reduction(int32_t dtype, int32_t op);
    Check& rank(uint32_t rank);
    Check& memory(const void* p, uint64_t bytes);
    Check& given(const void* p);
    // One piece a rank, from counts and displacements in elements.
    Check& pieces(const void* counts, const void* displacements, int32_t dtype,
                  std::vector<Part::Piece>* out);

    int32_t result() const { return result_; }
    const std::shared_ptr<Communicator>& comm() const { return comm_; }
    uint32_t ranks() const { return comm_->ranks; }

private:
    const char* function_;
    int32_t result_ = flexnpu::hccl::SUCCESS;
    std::shared_ptr<Communicator> comm_;
};

// Launches a task, or keeps it for HcclGroupEnd while this thread has a group open.
int32_t queue_task(std::unique_ptr<Task> task, aclrtStream stream);
int32_t queue_messages(std::shared_ptr<Communicator> comm, std::vector<Message> messages, aclrtStream stream);

}  // namespace flexnpu::emulator::hccl
