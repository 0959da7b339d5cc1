// What this process knows of its communicators, and the errors of HCCL's functions.
#pragma once

#include <cstdint>

#include "acl.gen.h"
#include "flexnpu/api/hccl_types.hpp"
#include "flexnpu/client/error.hpp"

namespace flexnpu::client {

struct KnownCommunicator {
    uint32_t ranks = 0, rank = 0;
};

// Of no ranks if `comm` is no communicator.
KnownCommunicator known_communicator(HcclComm comm);

template <class... Args>
int32_t refuse(int32_t result, const char* format, Args... args) {
    fail(result == hccl::E_NOT_SUPPORT ? acl::API_NOT_SUPPORTED : acl::INVALID_PARAM, format, args...);
    return result;
}

}  // namespace flexnpu::client
