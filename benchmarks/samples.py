"""Which arguments of torch's operators the emulated device takes, after torch's own table of them (OpInfo).

Every sample of every operator is computed by unmodified torch_npu on the emulated device and on the CPU.
*Right*: the results agree. *Refused*: a function of the emulated CANN says that it cannot. *Wrong*: they
differ, or the process dies. What torch_npu itself refuses or computes on the CPU is left out, and so is an
operator of which the device refuses every sample: it has no body. Random results are not compared. Prints a
table, or one JSON object.

EXAMPLES:
  flexnpu bench samples                         all operators, in float32
  flexnpu bench samples --dtype int64 roll add  two, in int64
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from flexnpu import emulator

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")
TIMEOUT_S = 600.0
"""For one operator, on any host."""


class Samples:
    """The process that computes; started anew after a crash."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workloads.samples"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.open("a"),
                text=True,
                # Once a launch has failed on torch_npu's own thread, it drops all later ones without a word.
                env=os.environ | emulator.environment() | {"OMP_NUM_THREADS": "1", "TASK_QUEUE_ENABLE": "0"},
            )
        return self._process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The program's answer; one sample that is wrong when it dies or hangs."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            while not line.startswith("{"):
                if not select.select([process.stdout], [], [], TIMEOUT_S)[0]:
                    break
                line = process.stdout.readline()
                if not line:
                    break
        except BrokenPipeError:
            pass
        if not line.startswith("{"):
            process.kill()
            status = process.wait()
            said = self._log.read_text(errors="replace")[-300:]
            return {"wrong": 1, "reasons": [["wrong", f"the process ended with {status}: {said}", 1]]}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def samples() -> Iterator[Samples]:
    """A process that computes, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        made = Samples(Path(folder) / "log")
        try:
            yield made
        finally:
            made.close()


def rows(of: Samples, dtypes: Iterable[str], names: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """A row an operator and type in which the device takes at least one sample, or gives a wrong result."""
    known = of.ask({})["operators"]
    for name in names or known:
        if name not in known:
            raise click.UsageError(f"no operator {name!r} in torch's table")
        for dtype in dtypes:
            answer = of.ask({"operator": name, "dtype": dtype})
            if answer.get("right") or answer.get("wrong"):
                counts = {word: answer.get(word, 0) for word in ("right", "refused", "wrong")}
                reasons = [reason for reason in answer["reasons"] if reason[0] != "elsewhere"]
                yield {"operator": name, "dtype": dtype, **counts, "reasons": reasons}


def total(of: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Right, refused and wrong samples of all rows."""
    sums = {"right": 0, "refused": 0, "wrong": 0}
    for row in of:
        for word in sums:
            sums[word] += row[word]
    return sums


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
    table = Table("operator", "type", "right", "refused", "wrong", "why")
    for row in found:
        why = "; ".join(f"{n} x {text[:100]}" for _, text, n in row["reasons"][:2])
        counts = (str(row[word]) for word in ("right", "refused", "wrong"))
        table.add_row(row["operator"], row["dtype"], *counts, why)
    console = Console()
    console.print(table)
    console.print(total(found))


if __name__ == "__main__":
    main()
