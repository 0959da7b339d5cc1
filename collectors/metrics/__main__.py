"""``python -m collectors.metrics`` prints the reference of metrics, docs/reference/metrics.md."""

from __future__ import annotations

import inspect
from types import ModuleType

from collectors.metrics import BY_SOURCE, Metric
from collectors.metrics.metric import ATTRIBUTES, LABELS
from collectors.series import FORGET_S, MAX_PROCESSES


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _text(docstring: str) -> str:
    """A docstring as Markdown: its paragraphs, a line each."""
    paragraphs = inspect.cleandoc(docstring).replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _row(one: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in one.labels) or "none"
    return f"| `{one.name}` | {one.kind} | {one.unit} | {labels} | `{one.otel}` | {_cell(one.help)} |"


def _source(module: ModuleType, metrics: tuple[Metric, ...]) -> list[str]:
    name = module.__name__.rpartition(".")[2]
    return [
        f"## {name}",
        "",
        _text(module.__doc__ or ""),
        "",
        "| name | type | unit | labels | OTLP name | what it is |",
        "|---|---|---|---|---|---|",
        *(_row(one) for one in metrics),
        "",
    ]


def markdown() -> str:
    """The whole page."""
    lines = [
        "# Metrics",
        "",
        "<!-- Made by `python -m collectors.metrics`. Do not edit. -->",
        "",
        "`flexnpu-collector` serves these as Prometheus metrics and, with `--otlp-endpoint`, sends them over "
        "OTLP. Each section is one source; its metrics are defined in the file of that name in "
        "`collectors/metrics/`. Units are UCUM codes (`s`: seconds, `By`: bytes, `1`: no unit, in braces: "
        "what is counted). Counters of requests and of the objective exist at 0 from the first sight of a "
        "process, before any traffic, so that a rate sees the first increment. Every other series exists "
        "only once there was something to measure: what was not measured is absent and not zero.",
        "",
        "A series ends with what it is about. A gauge, and what is told of a lane, session or engine, ends "
        "with the next export. A counter or histogram ends when no event of its service, or of its process, "
        f"came for {FORGET_S / 60:.0f} minutes. There are at most {MAX_PROCESSES} services and processes; "
        "beyond that the longest silent ends earlier. `flexnpu_daemon_up` stays at 0 for as long.",
        "",
        "Counters and histograms are labelled with the `service`: a restarted server goes on in the series "
        "of the one before. While no service is known of a process they have `pid` and `comm` instead. "
        "Gauges always have `pid`. `flexnpu_process_info` says which service and name belong to it.",
        "",
    ]
    for module, metrics in BY_SOURCE.items():
        lines += _source(module, metrics)
    lines += ["## Labels", "", "| label | OTLP attribute | what it is |", "|---|---|---|"]
    lines += [f"| `{label}` | `{ATTRIBUTES[label]}` | {_cell(LABELS[label])} |" for label in ATTRIBUTES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
