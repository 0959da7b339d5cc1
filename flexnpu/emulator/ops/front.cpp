// The two calls of every operator: the first validates and prepares, the second launches one kernel.
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string_view>

#include "acl.gen.h"
#include "executor.hpp"
#include "fn_ids.gen.h"
#include "registry.hpp"

namespace flexnpu::ops {
namespace {

// What the kernel needs; shared by the executor (when it is repeatable) and every launch in flight.
struct Work {
    uint32_t op = 0;
    Job job;  // empty: an operator that only takes its time
    emulator::KernelCost cost;
    std::vector<std::pair<const char*, int64_t>> ranges;

    int run() const {
        for (auto [start, size] : ranges) {
            if (!flexnpu_emu_is_device_range(start, static_cast<size_t>(size))) {
                return flexnpu_emu_fail(kAicoreException, "%s: %p..+%lld is not device memory",
                                        api::kOps[op].name, static_cast<const void*>(start),
                                        static_cast<long long>(size));
            }
        }
        try {
            return job();
        } catch (const std::exception& error) {
            return flexnpu_emu_fail(kAicoreException, "%s: %s", api::kOps[op].name, error.what());
        }
    }
};
using SharedWork = std::shared_ptr<const Work>;

struct Executor : aclOpExecutor {
    SharedWork work;
};

// Executors are never given back to the allocator, so that a stale handle can be told from a live one by its
// magic word.
class Pool {
public:
    static Pool& instance() {
        static Pool* pool = new Pool;  // outlives the threads that run at exit
        return *pool;
    }
    Executor* acquire(SharedWork work) {
        const std::lock_guard lock(mutex_);
        if (free_.empty()) {
            free_.push_back(&storage_.emplace_back());
        }
        // The oldest first: a handle comes back as late as possible.
        Executor* executor = free_.front();
        free_.pop_front();
        executor->work = std::move(work);
        executor->repeatable = false;
        executor->release = [](aclOpExecutor* e) { instance().release(static_cast<Executor*>(e)); };
        executor->magic = kExecutorLive;
        return executor;
    }
    void release(Executor* executor) {
        const std::lock_guard lock(mutex_);
        drop(executor);
    }
    // The work of a live executor, which is released unless it is repeatable. Null when it is not live.
    SharedWork take(aclOpExecutor* handle, uint32_t op) {
        const std::lock_guard lock(mutex_);
        if (handle == nullptr || handle->magic != kExecutorLive) {
            return nullptr;
        }
        auto* executor = static_cast<Executor*>(handle);
        if (executor->work->op != op) {
            return nullptr;
        }
        SharedWork work = executor->work;
        if (!executor->repeatable) {
            drop(executor);
        }
        return work;
    }

private:
    void drop(Executor* executor) {
        executor->magic = 0;
        executor->work.reset();
        free_.push_back(executor);
    }
    std::mutex mutex_;
    std::deque<Executor> storage_;
    std::deque<Executor*> free_;
};

int run_work(void* self) { return (*static_cast<SharedWork*>(self))->run(); }
void destroy_work(void* self) { delete static_cast<SharedWork*>(self); }

}  // namespace
}  // namespace flexnpu::ops

extern "C" {

aclnnStatus flexnpu_aclnn_first(uint32_t op, const AclnnArg* args, uint32_t n, uint64_t* workspace_size,
                                aclOpExecutor** executor) {
    using namespace flexnpu;
    // A row that asks for the greatest workspace of the operator before it in the table (generate.py,
    // op_symbols).
    if (std::string_view(api::kOps[op].name).ends_with("GetMax")) {
        --op;
    }
    const api::OpInfo& info = api::kOps[op];
    if (workspace_size == nullptr || executor == nullptr) {
        return flexnpu_emu_fail(ops::kParamNull, "%s: workspaceSize and executor must not be null",
                                info.name);
    }
    *workspace_size = 0;
    *executor = nullptr;
    try {
        ops::Call call(info.name, info.kinds, args, n);
        auto work = std::make_shared<ops::Work>();
        work->op = op;
        if (const ops::Prepare* prepare = ops::find_prepare(op)) {
            work->job = (*prepare)(call);
        } else if (flexnpu_emu_missing() == emulator::kMissingError &&
                   flexnpu_emu_mode() == emulator::kModeCompute) {
            return flexnpu_emu_fail(
                acl::OP_NOT_FOUND,
                "%s has no body in the emulated CANN; FLEXNPU_EMU_MISSING=time runs it for its time, "
                "without a result",
                info.name);
        } else {
            call.guess_cost();
        }
        work->cost = call.cost;
        work->ranges = std::move(call.ranges);
        *executor = ops::Pool::instance().acquire(std::move(work));
        return 0;
    } catch (const ops::Invalid& invalid) {
        return flexnpu_emu_fail(invalid.error, "%s", invalid.message.c_str());
    } catch (const std::bad_alloc&) {
        return flexnpu_emu_fail(acl::RT_MEMORY_ALLOCATION, "%s: out of host memory", info.name);
    }
}

aclnnStatus flexnpu_aclnn_second(uint32_t op, void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
    using namespace flexnpu;
    ops::SharedWork work = ops::Pool::instance().take(executor, op);
    if (work == nullptr) {
        return flexnpu_emu_fail(ops::kParamNull, "%s: not a live executor of this operator",
                                api::kOps[op].name);
    }
    emulator::Kernel kernel;
    kernel.op = op;
    kernel.name = api::kOps[op].name;
    kernel.cost = work->cost;
    kernel.has_body = static_cast<bool>(work->job);
    kernel.run = ops::run_work;
    kernel.destroy = ops::destroy_work;
    kernel.self = new ops::SharedWork(std::move(work));
    // An emulated kernel is one task whatever its shape, so the number of blocks says nothing.
    const aclError error =
        aclrtLaunchKernelWithHostArgs(nullptr, 1, stream, nullptr, &kernel, sizeof kernel, nullptr, 0);
    if (error != 0) {
        ops::destroy_work(kernel.self);
    }
    return error;
}
}
