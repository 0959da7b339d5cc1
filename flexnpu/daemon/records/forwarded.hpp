// Questions that are passed on to the vendor as they are, and texts.
#pragma once

#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class ForwardedRecords : RecordFamily {
public:
    ForwardedRecords(const RecordParts& parts, int32_t device) : RecordFamily(parts), device_(device) {}

    void forward(Session& s, Payload p, const Reply& reply);
    void text(Session& s, Payload p, const Reply& reply);

private:
    struct Context;

    const int32_t device_;
};

}  // namespace flexnpu::daemon
