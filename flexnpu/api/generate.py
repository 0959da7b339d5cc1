"""Generate the C++ that follows from the API table.

Reads `functions.tsv` (every AscendCL function outside aclnn: name, library, return type, parameter types,
class), `types.tsv` (what each type is in C) and `aclnn.tsv` (every aclnn operator with its argument kinds,
see `aclnn_arg.hpp`) and `refusals.tsv` (why functions are refused), and writes into OUT_DIR:

    acl.gen.h                   prototypes and types of every function
    fn_ids.gen.h, .gen.cpp      FnId, kFnNames, kOps, find_op
    aclnn_front.gen.cpp         exported aclnnX/aclnnXGetWorkspaceSize over the two flexnpu_aclnn_* hooks
    aclnn_invoke.gen.cpp        calls a vendor's first call from a list of AclnnArg
    emu_fallback_<lib>.gen.cpp  weak definition of every function of one library: a named ACL error
    client_stubs.gen.cpp        weak definition of every function: forwarded, or a named ACL error
    daemon_handlers.gen.cpp     the daemon's end of every forwarded function
    ge.gen.cpp                  the graph engine's C++ functions that programs link: each fails by name
    exports.gen.map             version script: the symbols that a client library exports

A function's class says who serves it under interposition:
    forward  generated: values and plain outputs cross to the daemon, which calls the vendor's
    hand     written by hand in flexnpu/client (a strong definition replaces the weak stub)
    local    host objects, answered in the caller's process by flexnpu/api/host_objects.cpp
    refuse   fails with an ACL error that names the function

Usage: python -m flexnpu.api.generate OUT_DIR, in the project's folder
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from flexnpu.api.tables import (
    ACLNN_KINDS,
    LIBRARIES,
    SCALARS,
    Function,
    TableError,
    op_symbols,
    read_engine,
    read_functions,
    read_ops,
    read_refusals,
    read_types,
    why_refused,
)


def emit_types(types: dict[str, str]) -> str:
    """C++ declarations of the types of types.tsv."""
    lines = []
    for name, kind in types.items():
        match kind:
            case "enum":
                lines.append(f"using {name} = int32_t;")
            case "handle" | "callback":
                lines.append(f"using {name} = void*;")
            case "struct":
                lines.append(f"struct {name};")
            case "u16":
                lines.append(f"using {name} = uint16_t;")
            case "dim3":
                lines.append(f"struct {name} {{ uint32_t x, y, z; }};")
            case _:
                raise TableError(f"types.tsv: {name}: kind {kind!r} is not known")
    return "\n".join(lines)


def aclnn_parameters(kinds: str) -> str:
    """The C parameter list of an operator's first call, from its argument kinds; ends with a comma."""
    return "".join(f"{ACLNN_KINDS[k][0]} a{i}, " for i, k in enumerate(kinds))


def acl_header(functions: list[Function], ops: list[tuple[str, str]], types: dict[str, str]) -> str:
    """acl.gen.h: types, and prototypes of all functions and operators."""
    out = [
        "#pragma once",
        "#include <cstddef>",
        "#include <cstdint>",
        '#include "flexnpu/api/acl_consts.h"',
        '#include "flexnpu/api/aclnn_arg.hpp"',
        emit_types(types),
        '#define FLEXNPU_EXPORT __attribute__((visibility("default")))',
        'extern "C" {',
    ]
    out += [f"FLEXNPU_EXPORT {f.prototype};" for f in functions]
    for name, kinds in ops:
        first, *second = op_symbols(name)
        out.append(
            f"FLEXNPU_EXPORT aclnnStatus {first}({aclnn_parameters(kinds)}"
            "uint64_t* workspace_size, aclOpExecutor** executor);"
        )
        out += [
            f"FLEXNPU_EXPORT aclnnStatus {symbol}(void* workspace, uint64_t workspace_size, "
            "aclOpExecutor* executor, aclrtStream stream);"
            for symbol in second
        ]
    out += [
        "// The two hooks that the library around aclnn_front.gen.cpp defines.",
        "aclnnStatus flexnpu_aclnn_first(uint32_t op, const AclnnArg* args, uint32_t n, "
        "uint64_t* workspace_size, aclOpExecutor** executor);",
        "aclnnStatus flexnpu_aclnn_second(uint32_t op, void* workspace, uint64_t workspace_size, "
        "aclOpExecutor* executor, aclrtStream stream);",
        "}",
    ]
    return "\n".join(out) + "\n"


def ids_header(functions: list[Function], ops: list[tuple[str, str]]) -> str:
    """fn_ids.gen.h: a number for each function and operator, and the hash of the table."""
    ids = "\n".join(f"    FN_{f.name}," for f in functions)
    return f"""#pragma once
#include <cstdint>
#include <string_view>

namespace flexnpu::api {{

// Numbers are rows of functions.tsv. They are private to one build: client and daemon compare kTableHash.
enum FnId : uint16_t {{
{ids}
    FN_COUNT,
}};
extern const char* const kFnNames[FN_COUNT];

struct OpInfo {{
    const char* name;   // "aclnnAdd"
    const char* kinds;  // one letter an argument, see aclnn_arg.hpp
}};
inline constexpr uint32_t kOpCount = {len(ops)};
extern const OpInfo kOps[kOpCount];
extern const uint64_t kTableHash;

// Row of the operator of that name ("aclnnAdd"), or -1.
int find_op(std::string_view name);

}}  // namespace flexnpu::api
"""


def fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash of a text (http://www.isthe.com/chongo/tech/comp/fnv)."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def ids_source(functions: list[Function], ops: list[tuple[str, str]]) -> str:
    """fn_ids.gen.cpp: names by number, numbers by name, and the hash of the table."""
    names = "\n".join(f'    "{f.name}",' for f in functions)
    rows = "\n".join(f'    {{"{n}", "{k}"}},' for n, k in ops)
    digest = fnv1a("\n".join([f.prototype + f.cls for f in functions] + [f"{n} {k}" for n, k in ops]))
    return f"""#include "fn_ids.gen.h"
#include <algorithm>

namespace flexnpu::api {{

const char* const kFnNames[FN_COUNT] = {{
{names}
}};
const OpInfo kOps[kOpCount] = {{
{rows}
}};
const uint64_t kTableHash = {digest:#x}ull;

int find_op(std::string_view name) {{
    auto end = kOps + kOpCount;
    auto before = [](const OpInfo& a, std::string_view b) {{ return a.name < b; }};
    auto it = std::lower_bound(kOps, end, name, before);
    return it != end && it->name == name ? int(it - kOps) : -1;
}}

}}  // namespace flexnpu::api
"""


def aclnn_front(ops: list[tuple[str, str]]) -> str:
    """aclnn_front.gen.cpp: both calls of each operator, which pass their arguments to the two hooks."""
    out = ['#include "acl.gen.h"', 'extern "C" {']
    for op, (name, kinds) in enumerate(ops):
        fields = ", ".join(
            f"{{'{k}', {{.{ACLNN_KINDS[k][1]} = "
            + {"p": f"const_cast<void*>(static_cast<const void*>(a{i}))", "i": f"int64_t(a{i})",
               "d": f"a{i}", "s": f"a{i}"}[ACLNN_KINDS[k][1]]
            + "}}"
            for i, k in enumerate(kinds)
        )  # fmt: skip
        args = f"const AclnnArg args[] = {{{fields}}};" if kinds else "const AclnnArg* args = nullptr;"
        first, *second = op_symbols(name)
        out.append(
            f"aclnnStatus {first}({aclnn_parameters(kinds)}uint64_t* ws, aclOpExecutor** ex) "
            f"{{ {args} return flexnpu_aclnn_first({op}, args, {len(kinds)}, ws, ex); }}"
        )
        out += [
            f"aclnnStatus {symbol}(void* ws, uint64_t size, aclOpExecutor* ex, aclrtStream stream) "
            f"{{ return flexnpu_aclnn_second({op}, ws, size, ex, stream); }}"
            for symbol in second
        ]
    out.append("}")
    return "\n".join(out) + "\n"


def aclnn_invoke(ops: list[tuple[str, str]]) -> str:
    """aclnn_invoke.gen.cpp: for each operator a call with arguments from an array."""
    # Pointers are one ABI class: instantiating by class, not by letter, keeps the thunks few.
    classes = {"p": "P", "s": "P"}
    rows = []
    for name, kinds in ops:
        letters = [classes.get(ACLNN_KINDS[k][1], k) for k in kinds]
        letters = ["i" if c == "u" else "w" if c in "vD" else c for c in letters]
        rows.append(f"    &Call<{', '.join(repr(c) for c in letters)}>::call,  // {name}")
    return (
        '#include "flexnpu/api/aclnn_invoke.hpp"\n#include "fn_ids.gen.h"\n\n'
        "namespace flexnpu::api {\n\nnamespace {\n"
        "const Thunk kThunks[kOpCount] = {\n" + "\n".join(rows) + "\n};\n}  // namespace\n\n"
        "aclnnStatus invoke_first(uint32_t op, void* fn, const AclnnArg* args, uint64_t* workspace_size,\n"
        "                         aclOpExecutor** executor) {\n"
        "    return kThunks[op](fn, args, workspace_size, executor);\n}\n\n}  // namespace flexnpu::api\n"
    )


def failing_body(f: Function, hook: str, why: str | None = None) -> str:
    """A body that reports `f` through `hook` and returns what its type allows."""
    call = f'{hook}("{f.name}")' if why is None else f"{hook}_why({c_string(f.name)}, {c_string(why)})"
    if f.returns in ("aclError", "aclnnStatus", "int32_t"):
        return f"{{ return {call}; }}"
    if f.returns == "void":
        return f"{{ {call}; }}"
    # 0 names a data type, -1 none.
    return f"{{ {call}; return {'-1' if f.returns == 'aclDataType' else '{}'}; }}"


def c_string(text: str) -> str:
    """A C string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def weak(f: Function, body: str) -> str:
    """A weak definition of a function, with the body given."""
    return f"__attribute__((weak)) {f.prototype} {body}"


def emu_fallback(functions: list[Function], library: str) -> str:
    """emu_fallback_<library>.gen.cpp: weak definitions of a library that fail by name."""
    out = ['#include "acl.gen.h"', '#pragma GCC diagnostic ignored "-Wunused-parameter"', 'extern "C" {',
           "// Records that the function has no body here and returns an ACL error.",
           "int emu_unsupported(const char* function);"]  # fmt: skip
    out += [weak(f, failing_body(f, "emu_unsupported")) for f in functions if f.library == library]
    out.append("}")
    return "\n".join(out) + "\n"


def split_pointer(parameter: str) -> tuple[str, int, bool]:
    """(base type, number of stars, pointee is const)"""
    stars = parameter.count("*")
    pointee_const = bool(re.match(r"const\b", parameter)) and stars > 0
    base = re.sub(r"\bconst\b", "", parameter).replace("*", "").strip()
    return base, stars, pointee_const


@dataclass(frozen=True)
class Forwarded:
    """How one parameter of a forwarded function crosses: 'value', 'stream' or 'out'."""

    how: str
    base: str


def forwarded(f: Function, types: dict[str, str]) -> list[Forwarded]:
    """How each parameter of a function of class forward crosses. Raises TableError when one cannot."""
    if f.parameters is None or f.variadic or f.returns != "aclError":
        raise TableError(
            f"functions.tsv: {f.name}: class forward needs a known signature, returning aclError"
        )
    result = []
    for p in f.parameters:
        base, stars, const = split_pointer(p)
        kind = "scalar" if base in SCALARS else types.get(base, "?")
        if stars == 0 and (kind in ("scalar", "enum") and base not in ("float", "double")):
            result.append(Forwarded("value", base))
        elif stars == 0 and base == "aclrtStream":
            result.append(Forwarded("stream", base))
        elif stars == 1 and not const and kind in ("scalar", "enum", "struct") and base != "char":
            result.append(Forwarded("out", base))
        else:
            raise TableError(
                f"functions.tsv: {f.name}: parameter {p!r} cannot be forwarded; use class hand or refuse"
            )
    return result


def client_stubs(functions: list[Function], types: dict[str, str]) -> str:
    """client_stubs.gen.cpp: weak definitions that forward a call to the daemon or refuse it."""
    out = [
        '#include "acl.gen.h"',
        '#include "fn_ids.gen.h"',
        "#include <cstring>",
        '#pragma GCC diagnostic ignored "-Wunused-parameter"',
        'extern "C" {',
        "// Sends the 8-byte words of the arguments and copies the answer's words back; an ACL error.",
        "aclError fx_call(uint16_t fn, const uint64_t* in, uint32_t in_words, "
        "uint64_t* out, uint32_t out_words);",
        "// Records that FlexNPU does not interpose the function and returns an ACL error.",
        "aclError fx_refuse(const char* function);",
        "aclError fx_refuse_why(const char* function, const char* why);",
    ]
    refusals = read_refusals()
    for f in functions:
        if f.cls in ("refuse", "hand"):
            out.append(weak(f, failing_body(f, "fx_refuse", why_refused(f.name, refusals))))
        elif f.cls == "forward":
            params = forwarded(f, types)
            words, outs, total = [], [], "0"
            for i, p in enumerate(params):
                if p.how == "value":
                    words.append(f"uint64_t(int64_t(a{i}))")
                elif p.how == "stream":
                    words.append(f"reinterpret_cast<uint64_t>(a{i})")
                else:
                    words.append(f"uint64_t(a{i} != nullptr)")
                    outs.append(f"if (a{i}) std::memcpy(a{i}, out + {total}, sizeof({p.base}));")
                    total += f" + (sizeof({p.base}) + 7) / 8"
            body = (
                f"{{ const uint64_t in[] = {{{', '.join(words) or '0'}}}; uint64_t out[1 + {total}] = {{}}; "
                f"aclError e = fx_call(flexnpu::api::FN_{f.name}, in, {len(words)}, out, {total}); "
                f"if (e == 0) {{ {' '.join(outs)} }} return e; }}"
            )
            out.append(weak(f, body))
    out.append("}")
    return "\n".join(out) + "\n"


def daemon_handlers(functions: list[Function], types: dict[str, str]) -> str:
    """daemon_handlers.gen.cpp: the call of each forwarded function, from the words of a message."""
    cases = []
    for f in functions:
        if f.cls != "forward":
            continue
        params = forwarded(f, types)
        decl, args, copy, total = [], [], [], "0"
        for i, p in enumerate(params):
            if p.how == "value":
                args.append(f"{p.base}(in[{i}])")
            elif p.how == "stream":
                decl.append(f"void* s{i} = nullptr;")
                decl.append(f"if (!ctx.stream(in[{i}], &s{i})) return acl::RT_INVALID_HANDLE;")
                args.append(f"s{i}")
            else:
                # A vendor's function may write through a null pointer: none gets there.
                decl.append(f"{p.base} o{i}{{}}; if (!in[{i}]) return acl::INVALID_PARAM;")
                args.append(f"&o{i}")
                copy.append(f"std::memcpy(out + {total}, &o{i}, sizeof(o{i}));")
                total += f" + (sizeof({p.base}) + 7) / 8"
        signature = ", ".join(f.parameters or ())
        cases.append(
            f"    case FN_{f.name}: {{\n"
            f"        if (in_words != {len(params)} || out_words < {total}) return acl::INVALID_PARAM;\n"
            f"        auto fn = reinterpret_cast<aclError (*)({signature})>(ctx.vendor(FN_{f.name}));\n"
            "        if (!fn) return acl::API_NOT_SUPPORTED;\n"
            + "".join(f"        {d}\n" for d in decl)
            + f"        aclError e = fn({', '.join(args)});\n"
            + "".join(f"        {c}\n" for c in copy)
            + f"        *written = {total};\n        return e;\n    }}"
        )
    body = "\n".join(cases)
    return f"""#include <cstring>
#include "acl.gen.h"
#include "flexnpu/api/forward.hpp"

#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wtype-limits"

namespace flexnpu::api {{

aclError handle_forward(uint16_t fn, const uint64_t* in, uint32_t in_words, uint64_t* out, uint32_t out_words,
                        uint32_t* written, ForwardContext& ctx) {{
    *written = 0;
    switch (fn) {{
{body}
    default:
        return acl::API_NOT_SUPPORTED;
    }}
}}

}}  // namespace flexnpu::api
"""


def engine(rows: list[tuple[str, str, str]]) -> str:
    """Functions of C++ that only their mangled names and what they return on failure are known of."""
    out = ['#include "flexnpu/api/ge.hpp"', 'extern "C" {']
    bodies = {
        "status": "return flexnpu::api::engine_status({});",
        "throw": "flexnpu::api::engine_throw({});",
        "void": "",
    }
    for i, (symbol, name, how) in enumerate(rows):
        if how == "own":
            continue
        returns = "uint32_t" if how == "status" else "void"
        attributes = '__attribute__((weak, visibility("default")))'
        out.append(f'{attributes} {returns} ge_{i}() asm("{symbol}");')
        out.append(f"{returns} ge_{i}() {{ {bodies[how].format(c_string(name))} }}")
    out.append("}")
    return "\n".join(out) + "\n"


def exports(functions: list[Function], ops: list[tuple[str, str]]) -> str:
    """exports.gen.map: the linker's version script, which exports the API alone."""
    names = [f.name for f in functions]
    names += [symbol for name, _ in ops for symbol in op_symbols(name)]
    names += [symbol for symbol, _, _ in read_engine()]
    names.append("flexnpu_*")
    return "{\n  global:\n" + "".join(f"    {n};\n" for n in names) + "  local: *;\n};\n"


def generate(out_dir: Path) -> None:
    """Writes all generated files into a folder; a file whose content is the same keeps its time."""
    functions, ops, types = read_functions(), read_ops(), read_types()
    files = {
        "acl.gen.h": acl_header(functions, ops, types),
        "fn_ids.gen.h": ids_header(functions, ops),
        "fn_ids.gen.cpp": ids_source(functions, ops),
        "aclnn_front.gen.cpp": aclnn_front(ops),
        "aclnn_invoke.gen.cpp": aclnn_invoke(ops),
        "client_stubs.gen.cpp": client_stubs(functions, types),
        "daemon_handlers.gen.cpp": daemon_handlers(functions, types),
        "exports.gen.map": exports(functions, ops),
        "ge.gen.cpp": engine(read_engine()),
    }
    for library in LIBRARIES:
        files[f"emu_fallback_{library}.gen.cpp"] = emu_fallback(functions, library)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = out_dir / name
        if not path.exists() or path.read_text() != text:  # an unchanged file rebuilds nothing
            path.write_text(text)


def main() -> int:
    """generate.py FOLDER; an exit status."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        generate(Path(sys.argv[1]))
    except TableError as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
