"""Does every panel of a dashboard show data? Asks a Prometheus each panel's own queries.

`check_panels` takes the dashboard as Grafana imports it, so that it checks what people will see.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dashboards.promql import duration
from workloads.prometheus import PrometheusError, query_api

_POINTS: Final = 60


@dataclass(frozen=True)
class QueryResult:
    """One query of one panel."""

    panel: str
    ref: str
    expression: str
    """As sent: with the variables filled in."""
    series: int
    """Series with at least one value that is a number."""
    last: float | None
    """The last such value of the first series."""
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it was answered with at least one series."""
        return self.error is None and self.series > 0


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(panel title, query letter, expression) of every query, those in collapsed rows included."""
    for panel in dashboard.get("panels", ()):
        yield from queries(panel)
        for target in panel.get("targets") or ():
            if target.get("expr"):
                yield panel["title"], target["refId"], target["expr"]


def fill_in(expression: str, variables: Mapping[str, str]) -> str:
    """Replace ``$name`` and ``${name}``. Raises `KeyError` for a variable that is not given."""
    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))", lambda m: variables[m[1] or m[2]], expression)


def check_panels(
    prometheus_url: str,
    dashboard: Mapping[str, Any],
    *,
    window_s: float = 60.0,
    rate_interval_s: float = 10.0,
    variables: Mapping[str, str] | None = None,
) -> list[QueryResult]:
    """Ask all queries over the last `window_s` seconds; rates are taken over `rate_interval_s`, which must
    span two scrapes. `variables` overrides the dashboard's own, which are taken as "All"."""
    filled = {
        "__rate_interval": duration(rate_interval_s),
        "__interval": duration(window_s / _POINTS),
        "__range": duration(window_s),
    }
    for variable in dashboard.get("templating", {}).get("list", ()):
        filled[variable["name"]] = variable.get("allValue") or ".*"
    filled |= variables or {}
    end = time.time()
    return [
        _ask(prometheus_url, panel, ref, fill_in(expression, filled), end - window_s, end)
        for panel, ref, expression in queries(dashboard)
    ]


def _ask(url: str, panel: str, ref: str, expression: str, start: float, end: float) -> QueryResult:
    step = max((end - start) / _POINTS, 0.1)
    try:
        data = query_api(
            url,
            "query_range",
            {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"},
        )
    except PrometheusError as error:
        return QueryResult(panel, ref, expression, 0, None, str(error))
    filled = [
        values
        for series in data["result"]
        if (values := [value for _, text in series["values"] if math.isfinite(value := float(text))])
    ]
    return QueryResult(panel, ref, expression, len(filled), filled[0][-1] if filled else None)


def report(results: list[QueryResult]) -> str:
    """A line a query, for people."""
    lines = []
    for result in results:
        state = "ok  " if result.ok else "none"
        what = (
            result.error or f"{result.series} series, last {result.last:.6g}"
            if result.ok
            else result.expression
        )
        lines.append(f"{state}  {result.panel} {result.ref}: {result.error or what}")
    return "\n".join(lines)
