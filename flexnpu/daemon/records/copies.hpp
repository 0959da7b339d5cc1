// Copies between host and device: in a stream, made here and now, or by the ring's worker. Calls the copy
// engine's account and the spare buffers; asks the sessions whether somebody would wait.
#pragma once

#include "flexnpu/daemon/copy_engine.hpp"
#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/sessions.hpp"

namespace flexnpu::daemon {

class CopyRecords : RecordFamily {
public:
    CopyRecords(const RecordParts& parts, Spares& spares, CopyEngine& copy_engine, const Sessions& sessions)
        : RecordFamily(parts), spares_(spares), copy_engine_(copy_engine), sessions_(sessions) {}

    void copy(Session& s, Payload p, const Reply& reply);

private:
    Spares& spares_;
    CopyEngine& copy_engine_;
    const Sessions& sessions_;
};

}  // namespace flexnpu::daemon
