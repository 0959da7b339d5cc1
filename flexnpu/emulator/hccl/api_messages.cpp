// The point-to-point messages of libhccl.
#include <utility>
#include <vector>

#include "flexnpu/emulator/hccl/call.hpp"

using namespace flexnpu::emulator::hccl;
namespace types = flexnpu::hccl;

namespace {

int32_t message(const char* function, bool send, void* buffer, uint64_t count, int32_t dtype, uint32_t peer,
                HcclComm handle, aclrtStream stream) {
    const uint64_t bytes = count * types::element_size(dtype);
    Check check(function, handle);
    if (check.type(dtype, count).rank(peer).memory(buffer, bytes).result()) {
        return check.result();
    }
    return queue_messages(check.comm(), {{send, peer, static_cast<char*>(buffer), bytes}}, stream);
}

}  // namespace

extern "C" {

int32_t HcclSend(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclSend", true, buffer, count, type, peer, comm, stream);
}
int32_t HcclRecv(void* buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                 aclrtStream stream) {
    return message("HcclRecv", false, buffer, count, type, peer, comm, stream);
}

int32_t HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm handle, aclrtStream stream) {
    Check check("HcclBatchSendRecv", handle);
    if (check.given(count != 0 ? items : reinterpret_cast<HcclSendRecvItem*>(1)).result()) {
        return check.result();
    }
    std::vector<Message> messages;
    for (uint32_t i = 0; i < count; ++i) {
        const HcclSendRecvItem& item = items[i];
        const uint64_t bytes = item.count * types::element_size(item.data_type);
        if (item.type != types::SEND && item.type != types::RECV) {
            return refuse(types::E_PARA, "HcclBatchSendRecv: item %u is neither a send nor a receive", i);
        }
        if (check.type(item.data_type, item.count).rank(item.peer).memory(item.buffer, bytes).result()) {
            return check.result();
        }
        messages.push_back({item.type == types::SEND, item.peer, static_cast<char*>(item.buffer), bytes});
    }
    return queue_messages(check.comm(), std::move(messages), stream);
}
}
