"""Which arguments of torch's operators the emulated device takes, after torch's own table of them (OpInfo).

Every sample of every operator is computed by unmodified torch_npu on the emulated device and on the CPU.
*Right*: the results agree. *Refused*: a function of the emulated CANN says that it cannot. *Missing*: the
function has no body. *Wrong*: the results differ, or the process dies. What torch_npu itself refuses or
computes on the CPU is left out, and so are random results, and operators of which all samples are missing or
left out. Prints a table, or one JSON object.

\b
EXAMPLES
  flexnpu bench samples                         all operators, in float32
  flexnpu bench samples --dtype int64 roll add  two, in int64
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from flexnpu import emulator
from flexnpu.console.tables import Console, Table
from workloads.json_child import JsonChild

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")
WORDS = ("right", "refused", "missing", "wrong")
TIMEOUT_S = 600.0
"""For one operator, on any host."""


class Samples:
    """The process that computes."""

    def __init__(self, log: Path) -> None:
        # Once a launch has failed on torch_npu's own thread, it drops all later ones without a word.
        environment = emulator.environment() | {"OMP_NUM_THREADS": "1", "TASK_QUEUE_ENABLE": "0"}
        command = [sys.executable, "-m", "workloads.samples"]
        self._child = JsonChild(command, environment, log, TIMEOUT_S)
        self.close = self._child.close

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The program's answer; one sample that is wrong when it dies or hangs."""
        answer = self._child.ask(request)
        return answer or {"wrong": 1, "reasons": [["wrong", self._child.last_words(300), 1]]}

    def operators(self) -> list[str]:
        """The names in torch's table."""
        answer = self.ask({})
        if "operators" not in answer:
            raise click.ClickException(f"cannot read torch's table of operators: {answer['reasons'][0][1]}")
        return list(answer["operators"])


@contextmanager
def samples() -> Iterator[Samples]:
    """A process that computes, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        made = Samples(Path(folder) / "log")
        try:
            yield made
        finally:
            made.close()


def rows(
    of: Samples, dtypes: Iterable[str], names: Iterable[str] = (), most: int | None = None
) -> Iterator[dict[str, Any]]:
    """A row an operator and type of which a sample got as far as a body. `most`: samples an operator."""
    known = of.operators()
    for name in names or known:
        if name not in known:
            raise click.UsageError(f"no operator {name!r} in torch's table")
        for dtype in dtypes:
            answer = of.ask({"operator": name, "dtype": dtype, "most": most})
            if answer.get("right") or answer.get("refused") or answer.get("wrong"):
                reasons = [reason for reason in answer["reasons"] if reason[0] != "elsewhere"]
                counts = {word: answer.get(word, 0) for word in WORDS}
                yield {"operator": name, "dtype": dtype, **counts, "reasons": reasons}


def total(of: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Samples of all rows, by word."""
    sums = dict.fromkeys(WORDS, 0)
    for row in of:
        for word in WORDS:
            sums[word] += row[word]
    return sums


def table(of: Iterable[dict[str, Any]]) -> Table:
    """The rows, for people."""
    made = Table("operator", "type", *WORDS, "why")
    for row in of:
        why = "; ".join(f"{n} x {text[:100]}" for _, text, n in row["reasons"][:2])
        made.add_row(row["operator"], row["dtype"], *(str(row[word]) for word in WORDS), why)
    return made


@click.command(help=__doc__)
@click.argument("operators", nargs=-1)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(DTYPES),
    default=["float32"],
    show_default=True,
    help="Element type of the samples; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(operators: tuple[str, ...], dtypes: tuple[str, ...], as_json: bool) -> None:
    """Computes and prints."""
    with samples() as process:
        found = list(rows(process, dtypes, operators))
    if as_json:
        click.echo(json.dumps({"benchmark": "samples", "total": total(found), "rows": found}))
        return
    console = Console()
    console.print(table(found))
    console.print(", ".join(f"{n} {word}" for word, n in total(found).items()))


if __name__ == "__main__":
    main()
