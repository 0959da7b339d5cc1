// The table of one instruction set.
#include "isa.hpp"

#define FLEXNPU_TEXT2(x) #x
#define FLEXNPU_TEXT(x) FLEXNPU_TEXT2(x)

namespace flexnpu::ops::FLEXNPU_ISA {

const Kernels& table() {
    static const Kernels kernels = [] {
        Kernels k = {};
        k.isa = FLEXNPU_TEXT(FLEXNPU_ISA);
        fill_convert(k);
        fill_unary(k);
        fill_binary(k);
        fill_reduce(k);
        fill_gemm(k);
        return k;
    }();
    return kernels;
}

}  // namespace flexnpu::ops::FLEXNPU_ISA
