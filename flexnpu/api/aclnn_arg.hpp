// One argument of an aclnn first call, tagged by its kind.
//
// Kinds, one letter an argument (the `arguments` column of aclnn.tsv):
//   T input tensor      t output or in-place tensor    L/l tensor list (in/out)
//   S scalar            C scalar list                  I int array   F float array   B bool array
//   i int64  u uint64  v uint32  w int32  h int8  b bool  D data type     (in .i)
//   d double  f float  (in .d)                         s string (in .s)
#pragma once

#include <cstdint>

struct AclnnArg {
    char kind;
    union {
        void* p;
        int64_t i;
        double d;
        const char* s;
    };
};

namespace flexnpu::api {

// True where the argument is a pointer to a host object (tensor, list, scalar or array).
constexpr bool is_object(char kind) {
    switch (kind) {
        case 'T':
        case 't':
        case 'L':
        case 'l':
        case 'S':
        case 'C':
        case 'I':
        case 'F':
        case 'B': return true;
        default: return false;
    }
}

}  // namespace flexnpu::api
