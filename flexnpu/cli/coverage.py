"""`flexnpu coverage`: which AscendCL a program asks for, and who serves it under interposition."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from flexnpu.api import tables
from flexnpu.cli.coverage_read import CoverageError, Wants, exports, read, union, wants
from flexnpu.client.environment import CLIENT_HOME
from flexnpu.console.output import out, out_json, say
from flexnpu.console.tables import Console, Table

INTERPOSED, REFUSED, MISSING = "interposed", "refused", "missing"
#: How an interposed function is served, by its class in the API table.
_HOW = {
    "forward": "the daemon calls the vendor's function of that name",
    "hand": "client library and daemon, by a record of its own",
    "local": "host object, in the program's own process",
    "operator": "operator: described once, launched by one record",
    "host library": "in the program's own process",
}
#: Why what has no row in the API table and a weak definition is refused, by the namespace in its name.
_REFUSED = {
    "2fe": "it tells a program's own kernels of the chip, and none is launched",
    "3atb": "this operation of ATB is no aclnn operator that could stand for it",
    "4adxl": "memory is shared within one host",
    "2ge": "the graph engine works on the device past AscendCL",
}
_UNKNOWN_OPERATOR = (
    "no signature in the API table: the look-up finds nothing, as in a CANN without this operator"
)
_UNKNOWN = "not in the API table"


@dataclass(frozen=True)
class Served:
    """One symbol: `by` is its class in the API table, `why` says how it is served, refused or not found."""

    symbol: str
    status: str
    by: str | None
    why: str
    error: int | None = None


class Surface:
    """What the built client libraries serve. Raises CoverageError where there are none."""

    def __init__(self, folder: Path = CLIENT_HOME / "lib") -> None:
        self.exports = exports(folder)
        if "aclInit" not in self.exports:
            raise CoverageError(f"no client libraries in {folder}: build them with: make build")
        rows = tables.read_rows(tables.HERE / "functions.tsv")
        self.classes = {row["function"]: row["class"] for row in rows}
        self.needed_by = {row["function"]: set(row["needed_by"].split(",")) for row in rows}
        for row in tables.read_rows(tables.HERE / "aclnn.tsv"):
            for name in tables.op_symbols(row["op"]):
                self.classes[name] = "operator"
                self.needed_by[name] = set(row["needed_by"].split(","))
        self.refusals = tables.read_refusals()

        consts = (tables.HERE / "acl_consts.h").read_text()
        found = re.search(r"\bAPI_NOT_SUPPORTED = (\d+)", consts)
        assert found, "acl_consts.h names the error of a refused function"
        self.refusal = int(found[1])

    def serve(self, symbol: str) -> Served:
        """Who serves `symbol` under interposition, and why if nobody does."""
        cls, weak = self.classes.get(symbol), self.exports.get(symbol)
        if weak is None:
            operator = symbol.startswith("aclnn") and cls is None
            return Served(symbol, MISSING, cls, _UNKNOWN_OPERATOR if operator else _UNKNOWN)
        if cls is None and weak:
            why = next((why for part, why in _REFUSED.items() if part in symbol), _REFUSED["2ge"])
            return Served(symbol, REFUSED, None, why, self.refusal)
        if cls is None:
            return Served(symbol, INTERPOSED, "host library", _HOW["host library"])
        # A weak stub answers for a function of class hand, too, as long as nobody has written its body.
        if cls in ("refuse", "hand", "local") and weak:
            return Served(symbol, REFUSED, cls, self._why(symbol), self.refusal)
        by = "hand" if cls == "refuse" else cls
        option = tables.served_unless_refused(symbol) if by == "hand" else None
        return Served(symbol, INTERPOSED, by, f"{_HOW[by]}, by {option} only" if option else _HOW[by])

    def _why(self, symbol: str) -> str:
        return tables.why_refused(symbol, self.refusals) or "not served yet"


@cache
def _demangler() -> Any:
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    return function


def demangle(symbol: str) -> str:
    """A C++ symbol as its declaration; others, and those that cannot be read, as they are."""
    if not symbol.startswith("_Z"):
        return symbol
    try:
        status = ctypes.c_int()
        found = _demangler()(symbol.encode(), None, None, ctypes.byref(status))
    except OSError:
        return symbol
    if not found:
        return symbol
    text = ctypes.string_at(found).decode()
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(found)
    return text


def _installed(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise CoverageError(f"{module} is not installed here: name the shared objects to read, or --client")
    return Path(next(iter(spec.submodule_search_locations)))


def _report(surface: Surface, asked: Wants) -> list[dict[str, object]]:
    rows = []
    for how, names in (("linked", asked.linked), ("looked up", asked.looked_up)):
        for name in sorted(names):
            one = surface.serve(name)
            row: dict[str, object] = {"symbol": name, "asked": how, "status": one.status, "class": one.by}
            row |= {"why": one.why} | ({"error": one.error} if one.error is not None else {})
            if demangle(name) != name:
                row["demangled"] = demangle(name)
            rows.append(row)
    return rows


def _short(declaration: str) -> str:
    """A C++ declaration without its parameters, which may fill the screen."""
    return re.sub(r"\(.*\)", "()", declaration)


def _print(report: dict[str, Any], every: bool) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    # Folders that all of them share say nothing.
    names = [row["library"] for row in report["libraries"]]
    shared = len(os.path.commonpath([os.path.dirname(name) for name in names])) + 1 if len(names) > 1 else 0
    for column in ("library", "linked", "looked up", INTERPOSED, REFUSED, MISSING):
        table.add_column(column, justify="left" if column == "library" else "right", overflow="fold")
    for row in report["libraries"]:
        cells = (row["linked"], row["looked_up"], row[INTERPOSED], row[REFUSED], row[MISSING])
        if any(cells):
            table.add_row(row["library"][shared:], *map(str, cells))
    counts = report["counts"]
    cells = (counts["linked"], counts["looked_up"], counts[INTERPOSED], counts[REFUSED], counts[MISSING])
    table.add_row("all together", *map(str, cells), style="bold")
    console.print(table)
    by = ", ".join(f"{n} {name}" for name, n in sorted(counts["interposed_by"].items()))
    if by:
        out(f"interposed: {by}")
    shown = [row for row in report["symbols"] if every or row["status"] != INTERPOSED]
    if shown:
        console.print()
        detail = Table(box=None, pad_edge=False)
        for column in ("symbol", "asked", "status", "why"):
            detail.add_column(column, overflow="fold")
        for row in sorted(shown, key=lambda r: (r["status"] == INTERPOSED, r["status"], r["symbol"])):
            status = row["status"] + (f" ({row['error']})" if "error" in row else "")
            detail.add_row(_short(row.get("demangled", row["symbol"])), row["asked"], status, row["why"])
        console.print(detail)
    if report["mentioned"]:
        console.print()
        console.print(
            f"{len(report['mentioned'])} more strings look like AscendCL functions; nothing says that they "
            "are looked up: " + ", ".join(report["mentioned"])
        )


def examine(libraries: tuple[Path, ...], client: str | None) -> dict[str, Any]:
    """The whole report, as --json prints it. Raises CoverageError."""
    surface = Surface()
    parts: list[tuple[str, Wants]] = []
    if client is not None:
        names = {name for name, users in surface.needed_by.items() if client in users}
        if not names:
            known = sorted(set().union(*surface.needed_by.values()) - {"-"})
            raise CoverageError(f"the API table knows no client {client}; it knows {', '.join(known)}")
        parts.append((f"the API table's rows of {client}", Wants(looked_up=names)))
    if not libraries and client is None:
        libraries = (_installed("torch_npu"),)
    objects = [one for path in libraries for one in read(path)]
    defined = {name for one in objects for name in one.defined}
    parts += [(one.name, wants(one, surface.classes, defined)) for one in objects]
    rows = []
    for name, asked in parts:
        served = Counter(surface.serve(s).status for s in asked.linked | asked.looked_up)
        row: dict[str, object] = {
            "library": name,
            "linked": len(asked.linked),
            "looked_up": len(asked.looked_up),
        }
        rows.append(row | {status: served[status] for status in (INTERPOSED, REFUSED, MISSING)})
    whole = union(asked for _, asked in parts)
    symbols = _report(surface, whole)
    status = Counter(row["status"] for row in symbols)
    return {
        "libraries": rows,
        "counts": {
            "linked": len(whole.linked),
            "looked_up": len(whole.looked_up),
            **{name: status[name] for name in (INTERPOSED, REFUSED, MISSING)},
            "interposed_by": dict(Counter(r["class"] for r in symbols if r["status"] == INTERPOSED)),
        },
        "symbols": symbols,
        "mentioned": sorted(whole.mentioned),
    }


@click.command(short_help="Show which AscendCL functions of a program are interposed.")
@click.argument("libraries", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[LIBRARY...]")
@click.option(
    "--client", metavar="NAME", help="What the API table says that this program needs, e.g. ggml-cann."
)
@click.option("--all", "every", is_flag=True, help="List interposed functions too.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: libraries, counts, symbols, mentioned."
)
def coverage(libraries: tuple[Path, ...], client: str | None, every: bool, as_json: bool) -> None:
    """Show who serves each AscendCL symbol that LIBRARY links or looks up.

    \b
    EXAMPLES
      flexnpu coverage
      flexnpu coverage onnxruntime_cann-1.24.4-cp311-cp311-manylinux_2_28_x86_64.whl
      flexnpu coverage --client vllm-ascend --json | jq .counts

    LIBRARY is a shared object, a wheel, or a folder of either's contents; without one it is the installed
    torch_npu. Each symbol is interposed (served by FlexNPU's libraries, in one of the ways of the API
    table), refused (it fails with an ACL error that names it and says why) or missing (nothing defines it).
    A looked-up name is recognised by its string, so one that a program puts together while it runs is not
    seen.

    Exit status: 0 if nothing is missing, 1 if something is, 2 if a file cannot be read.
    """
    try:
        report = examine(libraries, client)
    except CoverageError as error:
        say(error)
        raise SystemExit(2) from None
    if as_json:
        out_json(report, indent=2)
    else:
        _print(report, every)
    if report["counts"][MISSING]:
        raise SystemExit(1)
