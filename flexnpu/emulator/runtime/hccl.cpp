// libhccl: collectives are not modelled; their configuration is accepted.
#include "acl.gen.h"

extern "C" {

// (HcclConfig, HcclConfigValue): torch_npu sets the deterministic switch before its first operator, collectives or none.
int32_t HcclSetConfig() { return 0; }

// The number of configuration fields that are understood: none.
int32_t HcclGetCommConfigCapability() { return 0; }
}
