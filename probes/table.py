"""The table of `flexnpu-probe attach`: steps of the last interval by process, stream and phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table

from probes.events import Losses, Step

Lane = tuple[int, int]
"""(pid, stream)."""

ABSENT = "-"

_LOST = ("steps_lost", "begins_lost", "map_full", "bad_reads", "lanes_untracked", "reopened")
"""Counters that mean something was lost or cut."""


def quantile(values: list[float], q: float) -> float:
    """The exact `q` quantile of `values` (at least one), by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@dataclass
class _Row:
    comm: str = ""
    steps: int = 0
    tokens: int = 0
    with_tokens: int = 0
    launches: int = 0
    durations_us: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.comm = step.comm
        self.steps += 1
        self.launches += step.launches + step.graph_launches
        self.durations_us.append(step.duration_us)
        if step.tokens is not None:
            self.tokens += step.tokens
            self.with_tokens += 1


class Window:
    """Collects steps for one interval."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int, str], _Row] = {}

    def add(self, step: Step) -> None:
        if step.ended_by == "detach":
            return  # cut short by us
        self._rows.setdefault((step.pid, step.stream, step.phase), _Row()).add(step)

    def take(self, seconds: float, gated_us: Mapping[Lane, float], title: str) -> Table:
        """The table of the interval that ends now, `seconds` long, which also begins a new one.

        `gated_us`: what the daemon's gate held each lane in the interval; lanes without an entry show none.
        """
        rows, self._rows = self._rows, {}
        table = Table(box=None, padding=(0, 0, 0, 1), title=title, title_justify="left", title_style="dim")
        table.add_column("process", no_wrap=True, overflow="ellipsis", max_width=17)
        table.add_column("stream", no_wrap=True, overflow="ellipsis", max_width=14)
        table.add_column("phase", no_wrap=True)
        for name in ("steps/s", "tok/st", "p50 ms", "p99 ms", "ln/st", "gated"):
            table.add_column(name, justify="right", no_wrap=True)
        shown: set[Lane] = set()
        for (pid, stream, phase), row in sorted(rows.items()):
            gated = gated_us.get((pid, stream)) if (pid, stream) not in shown else None
            shown.add((pid, stream))
            table.add_row(
                f"{row.comm[: 16 - len(str(pid))]}:{pid}",
                f"{stream:#x}",
                phase,
                _number(row.steps / seconds),
                _number(row.tokens / row.with_tokens) if row.with_tokens else ABSENT,
                _number(quantile(row.durations_us, 0.5) / 1e3),
                _number(quantile(row.durations_us, 0.99) / 1e3),
                _number(row.launches / row.steps),
                ABSENT if gated is None else f"{gated / seconds / 1e4:.0f}%",
            )
        return table


def _number(value: float) -> str:
    """At most five characters for anything below 100,000."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def losses_line(losses: Losses) -> str:
    """One line on what was lost; quiet about counters that stand at zero."""
    counts = losses.counts
    lost = {name: counts[name] for name in _LOST if counts.get(name)}
    text = "lost: " + (", ".join(f"{name} {count}" for name, count in lost.items()) or "0")
    return f"{text}; unclassified: {counts.get('unclassified', 0)}"
