// Graphs: run, described, ended; and values that streams write and wait for. Calls the captures, which know a
// graph's handle.
#pragma once

#include "flexnpu/daemon/captures.hpp"
#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class GraphRecords : RecordFamily {
public:
    GraphRecords(const RecordParts& parts, Captures& captures) : RecordFamily(parts), captures_(captures) {}

    void launch(Session& s, Payload p, wire::StepWord step);
    void destroy(Session& s, Payload p, const Reply& reply);
    void text(Session& s, Payload p, const Reply& reply);
    void control(Session& s, Payload p, const Reply& reply);
    // aclrtValueWrite and aclrtValueWait.
    void value(Session& s, Payload p);

private:
    Captures& captures_;
};

}  // namespace flexnpu::daemon
