// Chooses the instruction set, once.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace flexnpu::ops {

namespace baseline {
const Kernels& table();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels& table();
}
#endif

namespace {

const Kernels& choose() {
    const char* wanted = std::getenv("FLEXNPU_EMU_ISA");
    const bool any = wanted == nullptr || *wanted == '\0';
#if defined(__x86_64__)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (has_avx2 && (any || std::strcmp(wanted, "avx2") == 0)) {
        return avx2::table();
    }
#endif
    if (!any && std::strcmp(wanted, "baseline") != 0) {
        std::fprintf(stderr,
                     "flexnpu: FLEXNPU_EMU_ISA=%s is not an instruction set of this machine; using baseline "
                     "(known: baseline, avx2)\n",
                     wanted);
    }
    return baseline::table();
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace flexnpu::ops
