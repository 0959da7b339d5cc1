// What operators tell about the step that they belong to: shapes and lengths, from the metadata of their
// first calls (wire/meta.hpp).
#pragma once

#include <cstdint>
#include <span>

#include "flexnpu/client/probe_point.hpp"

namespace flexnpu::client {

// What an operator tells about a step.
enum class StepRole : uint8_t {
    none,
    embedding,
    // Attention operators, by what their integer arrays are:
    attention,           // none of them lengths
    attention_kv,        // KV lengths
    attention_query_kv,  // query lengths, KV lengths
    attention_prefix,    // a prefix, query lengths, KV lengths
};
StepRole step_role(const char* op);

// What the first call of aclnnEmbedding(weight, indices, out) showed.
flexnpu_step_evidence of_embedding(std::span<const uint8_t> key);
// Of an attention operator: its first tensor is the query, its first text the query's layout, and `role` says
// what its integer arrays are. Of a step's second one only lengths are taken.
void add_attention(flexnpu_step_evidence* e, std::span<const uint8_t> key, StepRole role);
// What a step does, where its evidence says so; the same rules as probes/steps/phases.py has.
struct StepPhase {
    bool prefills = false, decodes = false;  // both: a mixed step; none: nobody can tell
    uint32_t tokens = 0;
    bool known() const { return prefills || decodes; }
};
StepPhase phase_of(const flexnpu_step_evidence& e);
// What attention operators told of one step, for another.
void take_lengths(flexnpu_step_evidence* to, const flexnpu_step_evidence& from);

}  // namespace flexnpu::client
