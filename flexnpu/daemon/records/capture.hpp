// Captures, and the groups of operators in them that can be given new arguments. Numbers the graphs. Calls
// the captures.
#pragma once

#include <map>
#include <string>

#include "flexnpu/daemon/captures.hpp"
#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class CaptureRecords : RecordFamily {
public:
    CaptureRecords(const RecordParts& parts, Captures& captures) : RecordFamily(parts), captures_(captures) {}

    void begin(Session& s, Payload p, const Reply& reply);
    void end(Session& s, Payload p, const Reply& reply);
    void info(Session& s, Payload p, const Reply& reply);
    void group_begin(Session& s, Payload p, const Reply& reply);
    void group_end(Session& s, Payload p, const Reply& reply);
    void update_begin(Session& s, Payload p);
    void update_end(Session& s, Payload p);
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["graphs_captured"] = graphs_; }

private:
    void ended(Session& s, const std::shared_ptr<Graph>& graph, Failure failure, const Reply& reply);

    Captures& captures_;
    uint64_t next_graph_ = 1, graphs_ = 0;
};

}  // namespace flexnpu::daemon
