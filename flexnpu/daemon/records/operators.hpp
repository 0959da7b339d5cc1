// Shapes of operators, and their launches. Calls the runner of first calls; asks the gate what an operator
// that is captured will take.
#pragma once

#include <map>
#include <string>

#include "flexnpu/daemon/first_call_runner.hpp"
#include "flexnpu/daemon/records/family.hpp"

namespace flexnpu::daemon {

class OperatorRecords : RecordFamily {
public:
    OperatorRecords(const RecordParts& parts, const gate::Gate& gate, FirstCallRunner& first_calls)
        : RecordFamily(parts), gate_(gate), first_calls_(first_calls) {}

    void define_shape(Session& s, Payload p, const Reply& reply);
    void drop_shape(Session& s, Payload p, const Reply& reply);
    void launch(Session& s, Payload p, wire::StepWord step);
    // The shapes that a launch gave its outputs.
    void late_dims(Session& s, Payload p, const Reply& reply);
    void counters(std::map<std::string, uint64_t>* out) const { (*out)["shapes_defined"] = shapes_; }

private:
    void keep_shape(Session& s, uint64_t number, std::shared_ptr<Shape> shape);

    const gate::Gate& gate_;
    FirstCallRunner& first_calls_;
    uint64_t shapes_ = 0;
};

}  // namespace flexnpu::daemon
