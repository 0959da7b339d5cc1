// Writes random evidence of steps, each with what the client makes of it, for a comparison with the tracer's
// rules: step_phases SEED COUNT. Of each: a flexnpu_step_record, then prefills, decodes and tokens (3 x 4
// bytes).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "flexnpu/client/steps/step_evidence.hpp"
#include "flexnpu/wire/meta.hpp"

using namespace flexnpu;
using Dims = std::vector<int64_t>;

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::mt19937_64 rng(std::strtoull(argv[1], nullptr, 10));
    const auto upto = [&](int64_t n) { return int64_t(rng() % uint64_t(n)); };
    for (long i = std::strtol(argv[2], nullptr, 10); i > 0; i--) {
        flexnpu_step_record r{};
        r.version = FLEXNPU_STEP_VERSION;
        r.size = sizeof(r);
        r.kind = FLEXNPU_STEP_DONE;
        const int64_t sequences = 1 + upto(6);
        Dims query, kv, each;
        int64_t tokens = 0;
        const int64_t kind = upto(3);  // decode, prefill, any
        for (int64_t s = 0; s < sequences; s++) {
            each.push_back(kind == 0 ? 1 : kind == 1 ? 2 + upto(40) : 1 + upto(3));
            query.push_back(tokens += each.back());
            kv.push_back(each.back() + upto(50));
        }
        const int64_t padding = upto(4) == 0 ? upto(5) : 0;
        if (upto(5) == 0) {  // sequences that are padding
            for (int64_t s = upto(3); s > 0; s--) {
                query.push_back(query.back() + 1);
                kv.push_back(0);
            }
        }
        const bool opened = upto(4) != 0;
        r.opening = opened ? FLEXNPU_STEP_EMBEDDING : FLEXNPU_STEP_ATTENTION;
        if (opened) {
            Dims indices{query.back() + padding};
            if (upto(3) == 0) indices = {sequences, 1 + upto(2) * upto(30)};
            Dims out = indices, table{1000, 64};
            out.push_back(64);
            wire::MetaWriter w;
            w.tensor('T', 1, 2, 0, table, {}, table);
            w.tensor('T', 9, 2, 0, indices, {}, indices);
            w.tensor('T', 1, 2, 0, out, {}, out);
            r.evidence = client::of_embedding(w.bytes());
        }
        if (!opened || upto(6) != 0) {
            wire::MetaWriter w;
            const char* layout = "TND";
            Dims shape{query.back() + padding, 8, 64};
            if (upto(3) == 0) {
                layout = "BNSD";
                shape = {sequences, 8, kind == 0 ? 1 : each[0], 64};
                query = each;
            }
            w.tensor('T', 1, 2, 0, shape, {}, shape);
            if (upto(5) != 0)
                w.array('I', query.data(), uint32_t(query.size()), 8);
            else
                w.array('I', nullptr, 0, 8);
            w.array('I', kv.data(), uint32_t(kv.size()), 8);
            w.array('s', layout, uint32_t(std::strlen(layout)), 1);
            client::add_attention(&r.evidence, w.bytes(), client::StepRole::attention_query_kv);
        }
        const client::StepPhase p = client::phase_of(r.evidence);
        const uint32_t verdict[3] = {p.prefills, p.decodes, p.tokens};
        if (std::fwrite(&r, sizeof(r), 1, stdout) != 1 ||
            std::fwrite(verdict, sizeof(verdict), 1, stdout) != 1)
            return 1;
    }
}
