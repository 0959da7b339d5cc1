"""The table of `flexnpu-probe attach`, as wide as there is room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Final

from rich.text import Text

from flexnpu.common.quantiles import nearest_rank
from flexnpu.console.tables import Table
from flexnpu.console.text import safe
from probes.feed.events import Losses
from probes.host.engine import engine_line
from probes.show.view import Row, Snapshot

ABSENT = "-"

_LOST = ("steps_lost", "begins_lost", "map_full", "bad_reads", "lanes_untracked", "reopened")
"""Counters that mean something was lost or cut."""

_WIRE_LOST = (
    "wire_lost",
    "wire_calls_lost",
    "wire_connections_lost",
    "wire_tls",
    "wire_http2",
    "feed_dropped",
)


@dataclass(frozen=True)
class Column:
    """A column. `value` gives what it is sorted by, None for nothing to show. The one with the greatest
    `rank` is left out first where there is no room. With `once`, only the first row of a process (`pid`) or
    lane (`lane`) has it."""

    key: str
    name: str
    rank: int
    value: Callable[[Row, Snapshot], float | str | None]
    text: Callable[[float], str]
    once: str = ""


def _number(value: float) -> str:
    """At most five characters for anything below 100,000."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value * 100:.0f}%"


def _host(name: str) -> Callable[[Row, Snapshot], float | None]:
    def value(row: Row, snapshot: Snapshot) -> float | None:
        host = snapshot.hosts.get(row.pid)
        return None if host is None else float(getattr(host, name))

    return value


def _overhead(row: Row, snapshot: Snapshot) -> float | None:
    found = snapshot.overhead.get(row.pid)
    return None if found is None else found.percent


COLUMNS: Final = (
    Column("c", "process", 0, lambda r, _: f"{safe(r.comm)[: 16 - len(str(r.pid))]}:{r.pid}", str),
    Column("l", "stream", 7, lambda r, _: f"{r.stream:#x}", str),
    Column("h", "phase", 0, lambda r, _: r.phase, str),
    Column("n", "steps/s", 5, lambda r, s: r.steps / s.seconds, _number),
    Column("t", "tok/s", 4, lambda r, s: r.tokens / s.seconds if r.with_tokens else None, _number),
    Column("k", "tok/st", 8, lambda r, _: r.tokens / r.with_tokens if r.with_tokens else None, _number),
    Column("5", "p50 ms", 0, lambda r, _: r.quantile_ms(0.5), _number),
    Column("9", "p99 ms", 1, lambda r, _: r.quantile_ms(0.99), _number),
    Column("o", "ln/st", 9, lambda r, _: r.launches / r.with_launches if r.with_launches else None, _number),
    Column("g", "gated", 3, lambda r, s: s.gated.get((r.pid, r.stream)), _percent, "lane"),
    Column("r", "runq", 2, _host("runqueue"), _percent, "pid"),
    Column("b", "probes", 6, _overhead, lambda value: f"{value:.2f}%", "pid"),
    Column("u", "cpu", 10, _host("cpu"), _percent, "pid"),
)
"""In the order of showing; `key` is what to press to sort by it."""

SORTABLE: Final = {column.key: column for column in COLUMNS}


def _ordered(snapshot: Snapshot, sort: str | None) -> list[Row]:
    if sort is None or sort not in SORTABLE:
        return snapshot.rows
    value = SORTABLE[sort].value

    def key(row: Row) -> tuple[bool, float, str]:
        """Numbers downwards, names upwards, nothing last."""
        of = value(row, snapshot)
        if isinstance(of, str):
            return False, 0.0, of
        return of is None, -(of or 0.0), ""

    return sorted(snapshot.rows, key=key)


def _cells(snapshot: Snapshot, sort: str | None) -> dict[str, list[str]]:
    """The cells of each column, downwards."""
    cells: dict[str, list[str]] = {column.name: [] for column in COLUMNS}
    shown: set[tuple[str, int, int]] = set()
    for row in _ordered(snapshot, sort):
        for column in COLUMNS:
            value = column.value(row, snapshot)
            if column.once:
                of = column.name, row.pid, row.stream if column.once == "lane" else 0
                if of in shown:
                    value = None
                shown.add(of)
            text = ABSENT if value is None else value if isinstance(value, str) else column.text(value)
            cells[column.name].append(text)
    return cells


def _fitting(cells: dict[str, list[str]], width: int) -> list[Column]:
    """The columns for which there is room, those of the least rank first."""
    left = width
    chosen: set[str] = set()
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        needed = 1 + max(len(text) for text in (column.name, *cells[column.name]))
        if needed > left and chosen:
            break
        left -= needed
        chosen.add(column.name)
    return [column for column in COLUMNS if column.name in chosen]


def render(
    snapshot: Snapshot, title: str | None, width: int, *, sort: str | None = None, limit: int | None = None
) -> Table:
    """`snapshot` as a table of at most `width` characters and `limit` rows; `sort` is a key of `SORTABLE`."""
    cells = _cells(snapshot, sort)
    columns = _fitting(cells, width)
    table = Table(box=None, padding=(0, 0, 0, 1), title=title, title_justify="left", title_style="dim")
    for column in columns:
        left = column.key in "clh"
        header = Text(column.name, style="reverse" if column.key == sort else "")
        table.add_column(header, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for row in list(zip(*(cells[column.name] for column in columns), strict=True))[:limit]:
        table.add_row(*row)
    return table


def request_lines(snapshot: Snapshot) -> list[str]:
    """A line an engine that tells of itself, and a line a process whose requests ended in the interval, with
    the mean of each part of their TTFT where it is known."""
    lines = [engine_line(engine) for engine in snapshot.engines]
    for one in snapshot.requests:
        text = f"{one.comm}:{one.pid} requests {one.count}"
        for name, values in (("TTFT", one.ttft_us), ("TPOT", one.tpot_us)):
            ordered = sorted(values)
            shown = (
                "/".join(_number(nearest_rank(ordered, q) / 1e3) for q in (0.5, 0.99)) if ordered else ABSENT
            )
            text += f"  {name} {shown}"
        parts = [f"{part} {_number(mean(values) / 1e3)}" for part, values in one.parts_us.items()]
        split = f"; TTFT: {', '.join(parts)} ms" if parts else ""
        lines.append(text + " ms p50/p99" + split)
    return lines


def mix_lines(snapshot: Snapshot) -> list[str]:
    """A line a lane whose operators were seen in a window of detail: the most frequent first."""
    lines = []
    for mix in snapshot.mixes:
        total = sum(mix.operators.values())
        ordered = sorted(mix.operators.items(), key=lambda item: (-item[1], item[0]))
        shares = [f"{name.removeprefix('aclnn')} {_percent(count / total)}" for name, count in ordered]
        if shares:
            lines.append(f"{mix.comm}:{mix.pid} {mix.stream:#x} operators: {', '.join(shares)}")
    return lines


def lines_below(snapshot: Snapshot) -> list[str]:
    """What is not of single steps."""
    return [
        *request_lines(snapshot),
        *shed_lines(snapshot),
        *mix_lines(snapshot),
    ]


def shed_lines(snapshot: Snapshot) -> list[str]:
    """A line a process that does without something for the budget."""
    comms = {row.pid: row.comm for row in snapshot.rows}
    return [
        f"{comms.get(pid, '')}:{pid} over the budget: without {', '.join(one.without)}"
        for pid, one in sorted(snapshot.overhead.items())
        if one.without
    ]


def losses_line(losses: Losses) -> str:
    """One line on what was lost; quiet about counters that stand at zero."""
    return counts_line(losses.counts)


def counts_line(counts: dict[str, int]) -> str:
    """`losses_line` of the counters of all sources, with what the budget made the tracer leave out."""
    lost = {name: counts[name] for name in (*_LOST, *_WIRE_LOST) if counts.get(name)}
    text = "lost: " + (", ".join(f"{name} {count}" for name, count in lost.items()) or "0")
    text += f"; unclassified: {counts.get('unclassified', 0)}"
    shed = {name.removeprefix("shed_"): n for name, n in counts.items() if name.startswith("shed_") and n}
    if shed:
        text += "; shed: " + ", ".join(f"{name} {count}" for name, count in shed.items())
    return text
