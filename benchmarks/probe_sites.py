"""What one hit of a uprobe costs, by the instruction under it.

Each of the instructions of `probes.placing.cost` is called in a loop with and without a probe that does
nothing, in turns, in one process. Beside it stands what `probes.placing.sites` expects of the instruction,
from the kernel's rules: a figure that is not on its side of the gap between emulated and single-stepped ones
is named.
"""

from __future__ import annotations

import json
import platform
import sys
from statistics import median
from typing import Any

import click

from flexnpu.console.numbers import COUNT
from probes.placing.attach import AttachError
from probes.placing.cost import INSTRUCTIONS, measure
from probes.placing.sites import HitCost, choose

_NEVER = ("call",)
"""Emulated by the kernel, and yet never chosen: see `probes.placing.sites`."""

_LATELY = ("nop of 3 bytes", "nop of 4 bytes")
"""Emulated since Linux 6.18, single-stepped before; no prologue is known to begin with one."""


def expected(machine: str, name: str) -> HitCost:
    """What `probes.placing.sites` says of a function that begins with the instruction `name`."""
    if name in _NEVER:
        return HitCost.EMULATED
    if name in _LATELY:
        return HitCost.UNKNOWN
    text, offset = INSTRUCTIONS[machine][name]
    code = bytes.fromhex(text)[offset:]
    choice = choose(code, machine)
    return choice.cost if choice.offset == 0 else HitCost.SINGLE_STEP


def run(hits: int, rounds: int) -> dict[str, Any]:
    """Median, least and greatest nanoseconds a hit for each kind of instruction, over `rounds` rounds."""
    machine = platform.machine()
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, cost in measure(hits=hits, rounds=1).items():
            if cost is not None:
                samples.setdefault(name, []).append(cost)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "ns": round(median(costs), 1),
            "min_ns": round(min(costs), 1),
            "expected": expected(machine, name),
        }
        for name, costs in samples.items()
    }
    by_kind: dict[HitCost, list[float]] = {
        kind: [row["min_ns"] for row in rows.values() if row["expected"] == kind]
        for kind in (HitCost.EMULATED, HitCost.SINGLE_STEP)
    }
    cheap, dear = (median(by_kind[kind]) for kind in (HitCost.EMULATED, HitCost.SINGLE_STEP))
    border = (cheap * dear) ** 0.5
    wrong = [
        name
        for name, row in rows.items()
        if row["expected"] is not HitCost.UNKNOWN
        and (row["min_ns"] < border) != (row["expected"] is HitCost.EMULATED)
    ]
    return {
        "machine": machine,
        "kernel": platform.release(),
        "hits": hits,
        "rounds": rounds,
        "instructions": rows,
        "emulated_ns": round(cheap, 1),
        "single_step_ns": round(dear, 1),
        "ratio": round(dear / cheap, 2),
        "unlike_expected": wrong,
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--hits", type=COUNT, default=2000, show_default=True, help="Calls a round.")
@click.option(
    "--rounds",
    type=COUNT,
    default=5,
    show_default=True,
    help="Rounds; the median of them is shown.",
)
def main(as_json: bool, hits: int, rounds: int) -> None:
    """What one hit of a uprobe costs, by the instruction under it. Needs the rights to trace."""
    try:
        report = run(hits, rounds)
    except AttachError as error:
        raise click.ClickException(f"{error}. See: sudo flexnpu-probe doctor") from None
    if as_json:
        json.dump(report, sys.stdout, indent=2)
        print()
        return
    for name, row in report["instructions"].items():
        note = "  (unlike expected)" if name in report["unlike_expected"] else ""
        print(f"{name:20} {row['ns']:10.0f} ns  {row['expected']}{note}")
    print(f"single-step costs {report['ratio']:.1f} times as much")


if __name__ == "__main__":
    main()
