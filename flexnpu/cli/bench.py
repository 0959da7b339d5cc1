"""`flexnpu bench NAME`: the benchmarks whose figures we claim, runnable where you are."""

from __future__ import annotations

import importlib

import click

#: Name -> module in `benchmarks` whose `main` is the command. Imported when called.
BENCHMARKS = {
    "launch": "benchmarks.launch_cost",
    "events": "benchmarks.events",
    "wire": "benchmarks.wire_latency",
    "classification": "benchmarks.classification",
    "controller": "benchmarks.controller_turn",
    "probe": "benchmarks.probe_cost",
    "sites": "benchmarks.probe_sites",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHMARKS:
            return None
        command = importlib.import_module(BENCHMARKS[cmd_name]).main
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Lazy, short_help="Measure what FlexNPU costs on this machine.")
def bench() -> None:
    """Measure what FlexNPU costs on this machine: each compares side by side in one run."""
