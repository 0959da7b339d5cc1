#include "flexnpu/emulator/hccl/call.hpp"

#include <cstring>
#include <utility>

#include "flexnpu/emulator/hccl/reduce.hpp"

namespace flexnpu::emulator::hccl {

namespace types = flexnpu::hccl;

HandleTable<Communicator>& communicators() {
    static auto* table = new HandleTable<Communicator>(HandleKind(7));
    return *table;
}

std::shared_ptr<Communicator> find(const char* function, HcclComm handle, int32_t* result) {
    auto comm = communicators().get(handle);
    if (!comm) {
        *result = refuse(handle == nullptr ? types::E_PTR : types::E_PARA, "%s: %p is not a communicator",
                         function, handle);
    }
    return comm;
}

Check::Check(const char* function, HcclComm handle) : function_(function) {
    comm_ = find(function, handle, &result_);
}

Check& Check::type(int32_t dtype, uint64_t count) {
    if (result_ == 0 && types::element_size(dtype) == 0) {
        result_ = refuse(types::E_PARA, "%s: %d is not a data type", function_, dtype);
    }
    if (result_ == 0 && count > kMostElements) {
        result_ =
            refuse(types::E_PARA, "%s: %llu elements", function_, static_cast<unsigned long long>(count));
    }
    return *this;
}
Check& Check::reduction(int32_t dtype, int32_t op) {
    if (result_ == 0 && (op < types::SUM || op > types::MIN)) {
        result_ = refuse(types::E_PARA, "%s: %d is not a reduction", function_, op);
    }
    if (result_ == 0 && !can_reduce(dtype)) {
        result_ = refuse(types::E_NOT_SUPPORT, "%s: data type %d cannot be reduced", function_, dtype);
    }
    return *this;
}
Check& Check::rank(uint32_t rank) {
    if (result_ == 0 && rank >= comm_->ranks) {
        result_ = refuse(types::E_PARA, "%s: rank %u of %u", function_, rank, comm_->ranks);
    }
    return *this;
}
Check& Check::memory(const void* p, uint64_t bytes) {
    if (result_ == 0 && bytes != 0 && flexnpu_emu_is_device_range(p, bytes) == 0) {
        result_ = refuse(p == nullptr ? types::E_PTR : types::E_PARA, "%s: %p..+%llu is not device memory",
                         function_, p, static_cast<unsigned long long>(bytes));
    }
    return *this;
}
Check& Check::given(const void* p) {
    if (result_ == 0 && p == nullptr) {
        result_ = refuse(types::E_PTR, "%s: an argument is null", function_);
    }
    return *this;
}

Check& Check::pieces(const void* counts, const void* displacements, int32_t dtype,
                     std::vector<Part::Piece>* out) {
    given(counts).given(displacements);
    for (uint32_t r = 0; result_ == 0 && r < ranks(); ++r) {
        uint64_t count = 0, displacement = 0;
        std::memcpy(&count, static_cast<const char*>(counts) + r * 8, 8);
        std::memcpy(&displacement, static_cast<const char*>(displacements) + r * 8, 8);
        if (count > kMostElements || displacement > kMostElements) {
            result_ = refuse(types::E_PARA, "%s: a count is too large", function_);
            break;
        }
        out->push_back({displacement * types::element_size(dtype), count * types::element_size(dtype)});
    }
    return *this;
}

namespace {

// What is queued between HcclGroupStart and HcclGroupEnd by this thread.
struct Group {
    int depth = 0;
    struct Entry {
        std::shared_ptr<Communicator> comm;
        aclrtStream stream;
        std::unique_ptr<Task> task;  // or:
        std::vector<Message> messages;
    };
    std::vector<Entry> entries;
};
thread_local Group t_group;

}  // namespace

int32_t queue_task(std::unique_ptr<Task> task, aclrtStream stream) {
    if (t_group.depth > 0) {
        t_group.entries.push_back({nullptr, stream, std::move(task), {}});
        return types::SUCCESS;
    }
    return Task::launch(std::move(task), stream);
}

int32_t queue_messages(std::shared_ptr<Communicator> comm, std::vector<Message> messages,
                       aclrtStream stream) {
    if (t_group.depth == 0) {
        return Task::launch(make_batch(std::move(comm), std::move(messages)), stream);
    }
    for (Group::Entry& entry : t_group.entries) {
        if (entry.comm == comm && entry.stream == stream) {
            entry.messages.insert(entry.messages.end(), messages.begin(), messages.end());
            return types::SUCCESS;
        }
    }
    t_group.entries.push_back({std::move(comm), stream, nullptr, std::move(messages)});
    return types::SUCCESS;
}

}  // namespace flexnpu::emulator::hccl

using namespace flexnpu::emulator::hccl;
namespace types = flexnpu::hccl;

extern "C" {

int32_t HcclGroupStart() {
    ++t_group.depth;
    return types::SUCCESS;
}

int32_t HcclGroupEnd() {
    if (t_group.depth == 0) {
        return refuse(types::E_PARA, "HcclGroupEnd without HcclGroupStart");
    }
    if (--t_group.depth > 0) {
        return types::SUCCESS;
    }
    int32_t result = types::SUCCESS;
    for (Group::Entry& entry : std::exchange(t_group.entries, {})) {
        auto task = entry.task ? std::move(entry.task) : make_batch(entry.comm, std::move(entry.messages));
        const int32_t one = Task::launch(std::move(task), entry.stream);
        result = result ? result : one;
    }
    return result;
}
}
