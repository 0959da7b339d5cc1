// aclrtBinary* and aclrtLaunchKernel*, where the daemon was told to serve them: a kernel's own code checks no
// address, so it can read and write every program's memory on the device. What can be checked is: handles,
// sizes, the place of arguments in device memory. Calls the releases.
#pragma once

#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/releases.hpp"

namespace flexnpu::daemon {

class KernelRecords : RecordFamily {
public:
    KernelRecords(const RecordParts& parts, Releases& releases, bool allowed)
        : RecordFamily(parts), releases_(releases), allowed_(allowed) {}

    void call(Session& s, Payload p, const Reply& reply);
    void launch(Session& s, Payload p);

private:
    Releases& releases_;
    const bool allowed_;
    uint64_t next_function_ = 1;
};

}  // namespace flexnpu::daemon
