// Calls a vendor's aclnnXGetWorkspaceSize from a list of AclnnArg.
#pragma once

#include <utility>

#include "acl.gen.h"

namespace flexnpu::api {

using Thunk = aclnnStatus (*)(void* fn, const AclnnArg* args, uint64_t* workspace_size,
                              aclOpExecutor** executor);

// ABI class of a parameter -> its C type. P stands for every pointer.
template <char Class>
struct Abi;
template <>
struct Abi<'P'> {
    using type = void*;
    static type get(const AclnnArg& a) { return a.p; }
};
template <>
struct Abi<'i'> {
    using type = int64_t;
    static type get(const AclnnArg& a) { return a.i; }
};
template <>
struct Abi<'w'> {
    using type = int32_t;
    static type get(const AclnnArg& a) { return int32_t(a.i); }
};
template <>
struct Abi<'h'> {
    using type = int8_t;
    static type get(const AclnnArg& a) { return int8_t(a.i); }
};
template <>
struct Abi<'b'> {
    using type = bool;
    static type get(const AclnnArg& a) { return a.i != 0; }
};
template <>
struct Abi<'d'> {
    using type = double;
    static type get(const AclnnArg& a) { return a.d; }
};
template <>
struct Abi<'f'> {
    using type = float;
    static type get(const AclnnArg& a) { return float(a.d); }
};

template <char... Classes>
struct Call {
    template <size_t... I>
    static aclnnStatus apply(void* fn, const AclnnArg* args, uint64_t* ws, aclOpExecutor** ex,
                             std::index_sequence<I...>) {
        using First = aclnnStatus (*)(typename Abi<Classes>::type..., uint64_t*, aclOpExecutor**);
        return reinterpret_cast<First>(fn)(Abi<Classes>::get(args[I])..., ws, ex);
    }
    static aclnnStatus call(void* fn, [[maybe_unused]] const AclnnArg* args, uint64_t* ws,
                            aclOpExecutor** ex) {
        return apply(fn, args, ws, ex, std::make_index_sequence<sizeof...(Classes)>{});
    }
};

// `fn` is the vendor's aclnnXGetWorkspaceSize of operator row `op`; `args` holds exactly one entry for each
// letter of kOps[op].kinds (the caller has checked that). Returns the vendor's status.
aclnnStatus invoke_first(uint32_t op, void* fn, const AclnnArg* args, uint64_t* workspace_size,
                         aclOpExecutor** executor);

}  // namespace flexnpu::api
