"""Reads the API tables: functions, types, operators, refusals, the graph engine's functions.

The tables are tab-separated files beside this module; `generate` says what stands in each.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLASSES = {"forward", "hand", "local", "refuse"}
LIBRARIES = ("acl_rt", "ascendcl", "nnopbase", "opapi", "acl_op_compiler", "hccl", "acl_tdt_channel")

# kind letter -> (C type in the prototype, how the argument is stored in AclnnArg)
ACLNN_KINDS = {
    "T": ("const aclTensor*", "p"),
    "t": ("aclTensor*", "p"),
    "L": ("const aclTensorList*", "p"),
    "l": ("aclTensorList*", "p"),
    "S": ("const aclScalar*", "p"),
    "C": ("const aclScalarList*", "p"),
    "I": ("const aclIntArray*", "p"),
    "F": ("const aclFloatArray*", "p"),
    "B": ("const aclBoolArray*", "p"),
    "i": ("int64_t", "i"),
    "u": ("uint64_t", "i"),
    "v": ("uint32_t", "i"),
    "w": ("int32_t", "i"),
    "h": ("int8_t", "i"),
    "b": ("bool", "i"),
    "D": ("aclDataType", "i"),
    "d": ("double", "d"),
    "f": ("float", "d"),
    "s": ("const char*", "s"),
}
SCALARS = {
    "bool", "char", "int", "float", "double", "size_t", "int8_t", "int16_t", "int32_t", "int64_t",
    "uint8_t", "uint16_t", "uint32_t", "uint64_t",
}  # fmt: skip


class TableError(Exception):
    """A row of the table cannot be used; the message names file, row and remedy."""


@dataclass(frozen=True)
class Function:
    """One row of functions.tsv."""

    name: str
    library: str
    returns: str
    parameters: tuple[str, ...] | None  # None: the signature is not known; declared without parameters
    variadic: bool
    cls: str

    @property
    def prototype(self) -> str:
        """As C declares it, with arguments a0, a1 ..."""
        args = [f"{p} a{i}" for i, p in enumerate(self.parameters or ())]
        if self.variadic:
            args.append("...")
        return f"{self.returns} {self.name}({', '.join(args)})"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated file, by the names in its head."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_functions() -> list[Function]:
    """functions.tsv. Raises TableError for a row that contradicts itself."""
    functions = []
    for row in read_rows(HERE / "functions.tsv"):
        name, text = row["function"], row["parameters"]
        if row["class"] not in CLASSES:
            raise TableError(f"functions.tsv: {name}: class {row['class']!r} is not one of {sorted(CLASSES)}")
        if row["library"] not in LIBRARIES:
            raise TableError(f"functions.tsv: {name}: library {row['library']!r} is not one of {LIBRARIES}")
        parts = [p.strip() for p in text.split(",")] if text not in ("", "?") else []
        variadic = bool(parts) and parts[-1] == "..."
        functions.append(
            Function(
                name=name,
                library=row["library"],
                returns=row["returns"],
                parameters=None if text == "?" else tuple(parts[:-1] if variadic else parts),
                variadic=variadic,
                cls=row["class"],
            )
        )
    return functions


def read_ops() -> list[tuple[str, str]]:
    """aclnn.tsv: (operator, letters of its argument kinds). Raises TableError for unknown letters."""
    ops = []
    for row in read_rows(HERE / "aclnn.tsv"):
        kinds = "" if row["arguments"] == "-" else row["arguments"]
        unknown = set(kinds) - set(ACLNN_KINDS)
        if unknown:
            raise TableError(f"aclnn.tsv: {row['op']}: argument kinds {sorted(unknown)} are not known")
        ops.append((row["op"], kinds))
    return ops


def op_symbols(op: str) -> tuple[str, ...]:
    """The exported functions of a row of aclnn.tsv: first and second call.

    A row `XGetMax` follows the row of operator `X`, and is the one function `XGetMaxWorkspaceSize`: the most
    workspace that the operator needs with whatever sequence lengths.
    """
    return (f"{op}WorkspaceSize",) if op.endswith("GetMax") else (f"{op}GetWorkspaceSize", op)


def read_types() -> dict[str, str]:
    """types.tsv: the kind of each type."""
    return {row["type"]: row["kind"] for row in read_rows(HERE / "types.tsv")}


def read_refusals() -> list[tuple[str, str]]:
    """(pattern of names, why FlexNPU refuses them), of which the first that fits counts."""
    return [(row["pattern"], row["why"]) for row in read_rows(HERE / "refusals.tsv")]


def served_unless_refused(name: str) -> str | None:
    """The option of the daemon that serves `name`, which it refuses without."""
    rows = read_rows(HERE / "refusals.tsv")
    found = next((row["unless"] for row in rows if fnmatchcase(name, row["pattern"])), "-")
    return None if found == "-" else found


def why_refused(name: str, refusals: list[tuple[str, str]]) -> str | None:
    """The reason of the first pattern that fits a name, or None."""
    return next((why for pattern, why in refusals if fnmatchcase(name, pattern)), None)


def read_engine() -> list[tuple[str, str, str]]:
    """(symbol, name, how) of ge.tsv. How one fails: status (a graphStatus), throw (std::runtime_error), void
    (nothing to do) or own (it works: written by hand in ge.cpp).
    """
    rows = [(row["symbol"], row["name"], row["how"]) for row in read_rows(HERE / "ge.tsv")]
    for symbol, _, how in rows:
        if how not in ("status", "throw", "void", "own"):
            raise TableError(f"ge.tsv: {symbol}: how {how!r} is not status, throw, void or own")
    return rows
