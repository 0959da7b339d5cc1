"""The *PD co-location* dashboard: prefill and decode on one NPU, what each does to the other, what the gate
does.

Every query is made from `collectors.metrics`. Variables: `datasource`, a Prometheus, and `process`, the
command names of the servers to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from grafanalib import core
from grafanalib._gen import DashboardEncoder

from collectors.metrics import Metric, collector, daemon, engine, gate, host, lanes, requests, steps, tracer
from dashboards import alerts

UID: Final = "flexnpu-pd-colocation"
EMPTY_UNLESS: Final = {
    "Waits for block devices and swap": "the kernel accounts for delays (sysctl kernel.task_delayacct=1)",
    "Requests in the engine": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
    "KV cache": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
    "Tokens, as the engine counts them": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
}
"""Panels without data on many machines, and what they need."""
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

_SELECT: Final = 'comm=~"$process"'
_WIDTH: Final = 24
_HEIGHT: Final = 8

Query = tuple[str, str]
"""A PromQL expression and the legend of its series."""


def rate(series: str, *matchers: str) -> str:
    """Per second, over an interval that suits the scrapes."""
    return f"rate({_selected(series, *matchers)}[$__rate_interval])"


def _selected(series: str, *matchers: str) -> str:
    return f"{series}{{{', '.join(matchers)}}}" if matchers else series


def quantiles(
    metric: Metric, by: Sequence[str], legend: str, qs: Sequence[float] = (0.5, 0.99), *matchers: str
) -> list[Query]:
    """Quantiles of a histogram, one query each."""
    of = f"sum by ({', '.join(['le', *by])}) ({rate(metric.bucket, _SELECT, *matchers)})"
    return [(f"histogram_quantile({q}, {of})", f"p{q * 100:g} {legend}") for q in qs]


def per_second(metric: Metric, by: Sequence[str], legend: str) -> Query:
    """A query of the rate of a counter a second, summed by labels, with its legend."""
    return f"sum by ({', '.join(by)}) ({rate(metric.name, _SELECT)})", legend


_BY: Final = ("comm", "pid", "phase")
_BY_LEGEND: Final = "{{phase}} {{comm}} {{pid}}"
_LANE_LEGEND: Final = "{{comm}} {{pid}} lane {{lane}}"


def _ratio(over: Metric, under: Metric, by: Sequence[str], *matchers: str) -> str:
    """`matchers` select series of `over` only."""
    grouped = f"sum by ({', '.join(by)})"
    return f"{grouped} ({rate(over.name, _SELECT, *matchers)}) / {grouped} ({rate(under.name, _SELECT)})"


def _interference() -> str:
    """The median decode step beside a prefill over the median without."""

    def median(flag: str) -> str:
        series = rate(steps.DECODE_DURATION.bucket, _SELECT, f'prefill_in_flight="{flag}"')
        return f"histogram_quantile(0.5, sum by (le, comm, pid) ({series}))"

    return f"{median('true')} / {median('false')}"


def _ttft_parts() -> str:
    """The mean of each part of the TTFT, over all joined requests: they stack up to the mean TTFT."""
    of = f"sum by (part) ({rate(requests.TTFT_PART.sum, _SELECT)})"
    sent = 'part="send"'
    joined = f"sum ({rate(requests.TTFT_PART.count, _SELECT, sent)})"
    return f"{of} / on () group_left () {joined}"


def _burn_rates() -> list[Query]:
    lengths = sorted({length for window in alerts.WINDOWS for length in (window.short_s, window.long_s)})
    return [
        (
            f"({alerts.error_ratio(length)}) / {alerts.error_budget()}",
            f"{{{{comm}}}} {{{{pid}}}} over {alerts.duration(length)}",
        )
        for length in lengths
    ]


def _panel(title: str, text: str, unit: str, queries: Sequence[Query], **more: Any) -> core.TimeSeries:
    return core.TimeSeries(
        title=title,
        description=text,
        dataSource=DATASOURCE,
        targets=[
            core.Target(
                expr=expr,
                legendFormat=legend,
                refId=chr(ord("A") + i),
                intervalFactor=1,
                datasource=DATASOURCE,
            )
            for i, (expr, legend) in enumerate(queries)
        ],
        unit=unit,
        showPoints="never",
        tooltipMode="multi",
        **{"valueMin": 0, "fillOpacity": 8, **more},
    )


def _rows() -> list[tuple[str, list[core.TimeSeries]]]:
    return [
        (
            "Requests, from the servers' sockets",
            [
                _panel(
                    "Time to first token",
                    requests.TTFT.help,
                    "s",
                    quantiles(requests.TTFT, ["comm", "pid"], "{{comm}} {{pid}}", (0.5, 0.9, 0.99)),
                ),
                _panel(
                    "Where the first token's time went",
                    f"{requests.TTFT_PART.help} Means, which stack up to the mean TTFT of those requests.",
                    "s",
                    [(_ttft_parts(), "{{part}}")],
                    stacking={"mode": "normal", "group": "A"},
                    fillOpacity=60,
                ),
                _panel(
                    "Delays in the server's sockets",
                    f"{requests.READ_DELAY.help} {requests.SEND_DELAY.help}",
                    "s",
                    [
                        *quantiles(requests.READ_DELAY, ["comm", "pid"], "read {{comm}} {{pid}}", (0.99,)),
                        *quantiles(requests.SEND_DELAY, ["comm", "pid"], "held {{comm}} {{pid}}", (0.99,)),
                    ],
                ),
                _panel(
                    "Time to second token",
                    requests.SECOND_TOKEN.help,
                    "s",
                    quantiles(requests.SECOND_TOKEN, ["comm", "pid"], "{{comm}} {{pid}}"),
                ),
                _panel(
                    "Time per output token",
                    f"{requests.TPOT.help} And the single intervals: {requests.TOKEN_INTERVAL.help}",
                    "s",
                    [
                        *quantiles(requests.TPOT, ["comm", "pid"], "{{comm}} {{pid}}"),
                        *quantiles(requests.TOKEN_INTERVAL, ["comm", "pid"], "{{comm}} {{pid}} interval"),
                    ],
                ),
                _panel(
                    "Requests",
                    requests.REQUESTS.help,
                    "reqps",
                    [
                        per_second(
                            requests.REQUESTS,
                            ["comm", "code", "complete"],
                            "{{comm}} {{code}} whole: {{complete}}",
                        )
                    ],
                ),
                _panel(
                    "TTFT objective: burn rate",
                    "How fast the error budget of the TTFT objective is spent; at 1 it lasts exactly "
                    "its period. " + requests.SLO_REQUESTS.help,
                    "none",
                    _burn_rates(),
                ),
                _panel(
                    "TTFT objective: good requests",
                    requests.SLO_GOOD.help,
                    "percentunit",
                    [
                        (
                            _ratio(requests.SLO_GOOD, requests.SLO_REQUESTS, ["comm", "pid"]),
                            "{{comm}} {{pid}}",
                        ),
                        (collector.SLO_OBJECTIVE.name, "objective"),
                    ],
                    valueMax=1,
                ),
            ],
        ),
        (
            "Steps, from the probes",
            [
                _panel(
                    "Step time by phase",
                    steps.DURATION.help,
                    "s",
                    quantiles(steps.DURATION, ["phase", "comm", "pid"], "{{phase}} {{comm}} {{pid}}"),
                ),
                _panel(
                    "Decode step with and without a prefill in flight",
                    steps.DECODE_DURATION.help,
                    "s",
                    quantiles(
                        steps.DECODE_DURATION,
                        ["comm", "pid", "prefill_in_flight"],
                        "{{comm}} {{pid}} prefill: {{prefill_in_flight}}",
                    ),
                ),
                _panel(
                    "Interference",
                    "The median decode step beside a prefill, over the median decode step without.",
                    "none",
                    [(_interference(), "{{comm}} {{pid}}")],
                ),
                _panel(
                    "Steps",
                    steps.STEPS.help,
                    "none",
                    [per_second(steps.STEPS, _BY, _BY_LEGEND)],
                ),
                _panel(
                    "Tokens",
                    steps.TOKENS.help,
                    "none",
                    [per_second(steps.TOKENS, _BY, _BY_LEGEND)],
                ),
                _panel(
                    "Operator launches a step",
                    steps.COUNTED.help,
                    "none",
                    [
                        (
                            _ratio(steps.LAUNCHES, steps.COUNTED, _BY, 'kind="operator"'),
                            _BY_LEGEND,
                        )
                    ],
                ),
                _panel(
                    "Run-queue wait of the launching threads",
                    f"{host.RUNQUEUE.help} As a share of time, which all threads of a process together "
                    "may exceed.",
                    "percentunit",
                    [
                        (rate(host.RUNQUEUE.name, _SELECT), "{{scope}} {{comm}} {{pid}}"),
                    ],
                ),
                _panel(
                    "CPU of the launching threads",
                    host.CPU.help,
                    "percentunit",
                    [(rate(host.CPU.name, _SELECT), "{{scope}} {{comm}} {{pid}}")],
                ),
                _panel(
                    "Waits for block devices and swap",
                    host.IO.help,
                    "percentunit",
                    [(rate(host.IO.name, _SELECT), "{{kind}} {{scope}} {{comm}} {{pid}}")],
                ),
            ],
        ),
        (
            "Engines, from their own metrics",
            [
                _panel(
                    "Requests in the engine",
                    f"{engine.RUNNING.help} {engine.WAITING.help}",
                    "none",
                    [
                        (engine.RUNNING.name, "running {{engine}} {{url}}"),
                        (engine.WAITING.name, "waiting {{engine}} {{url}}"),
                    ],
                ),
                _panel(
                    "KV cache",
                    f"{engine.KV_USAGE.help} {engine.PREEMPTIONS.help}",
                    "percentunit",
                    [(engine.KV_USAGE.name, "{{engine}} {{url}}")],
                    valueMax=1,
                ),
                _panel(
                    "Tokens, as the engine counts them",
                    f"{engine.PROMPT_TOKENS.help} {engine.GENERATION_TOKENS.help}",
                    "none",
                    [
                        (rate(engine.PROMPT_TOKENS.name), "prompt {{engine}} {{url}}"),
                        (rate(engine.GENERATION_TOKENS.name), "generated {{engine}} {{url}}"),
                    ],
                ),
            ],
        ),
        (
            "Device and gate, from the daemon",
            [
                _panel(
                    "Device busy",
                    daemon.DEVICE_BUSY.help,
                    "percentunit",
                    [(f"sum by (device) ({rate(daemon.DEVICE_BUSY.name)})", "npu{{device}}")],
                    valueMax=1,
                ),
                _panel(
                    "Device time by lane",
                    lanes.DEVICE_TIME.help,
                    "percentunit",
                    [(rate(lanes.DEVICE_TIME.name, _SELECT), _LANE_LEGEND)],
                ),
                _panel(
                    "Gate time",
                    f"{lanes.GATED.help} As a share of time.",
                    "percentunit",
                    [(rate(lanes.GATED.name, _SELECT), _LANE_LEGEND)],
                ),
                _panel(
                    "Queue depth",
                    f"{lanes.QUEUED.help} {lanes.IN_FLIGHT.help}",
                    "none",
                    [
                        (_selected(lanes.QUEUED.name, _SELECT), f"queued {_LANE_LEGEND}"),
                        (_selected(lanes.IN_FLIGHT.name, _SELECT), f"in flight {_LANE_LEGEND}"),
                    ],
                ),
                _panel(
                    "Gate window and lease",
                    f"{gate.WINDOW.help} {gate.LEASE.help}",
                    "s",
                    [
                        (gate.WINDOW.name, "window npu{{device}}"),
                        (gate.LEASE.name, "lease npu{{device}}"),
                    ],
                ),
                _panel(
                    "Gate policy and lanes' phases",
                    f"{gate.POLICY.help} {lanes.PHASE.help}",
                    "none",
                    [
                        (gate.POLICY.name, "npu{{device}} {{policy}}"),
                        (_selected(lanes.PHASE.name, _SELECT), f"{_LANE_LEGEND} {{{{phase}}}}"),
                    ],
                ),
            ],
        ),
        (
            "The measurement itself",
            [
                _panel(
                    "Lost events",
                    tracer.LOST_EVENTS.help,
                    "none",
                    [
                        (
                            f"sum by (source, kind) ({rate(tracer.LOST_EVENTS.name)})",
                            "{{source}} {{kind}}",
                        )
                    ],
                ),
                _panel(
                    "Sources",
                    f"{collector.FEED_CONNECTED.help} {daemon.UP.help}",
                    "none",
                    [
                        (collector.FEED_CONNECTED.name, "tracer"),
                        (daemon.UP.name, "daemon npu{{device}}"),
                    ],
                    valueMax=1,
                ),
            ],
        ),
    ]


def dashboard() -> Any:
    """The dashboard, a `grafanalib.core.Dashboard`."""
    panels: list[core.Panel] = []
    y = 0
    for title, row in _rows():
        panels.append(core.RowPanel(title=title, gridPos=core.GridPos(h=1, w=_WIDTH, x=0, y=y)))
        y += 1
        width = _WIDTH // min(3, len(row))
        for i, panel in enumerate(row):
            column = i * width % _WIDTH
            panel.gridPos = core.GridPos(h=_HEIGHT, w=width, x=column, y=y)
            panels.append(panel)
            if column + width >= _WIDTH or i == len(row) - 1:
                y += _HEIGHT
    built: Any = core.Dashboard(
        title="FlexNPU: PD co-location",
        uid=UID,
        description="Prefill and decode on one NPU: latencies, interference, and the gate between them.",
        tags=["flexnpu", "npu", "llm"],
        timezone="browser",
        refresh="5s",
        time=core.Time("now-15m", "now"),
        sharedCrosshair=True,
        schemaVersion=39,
        templating=core.Templating(
            [
                core.Template(name="datasource", label="Prometheus", type="datasource", query="prometheus"),
                core.Template(
                    name="process",
                    label="Process",
                    query=f"label_values({steps.STEPS.name}, comm)",
                    dataSource=DATASOURCE,
                    multi=True,
                    includeAll=True,
                    allValue=".*",
                    default="All",
                    refresh=2,
                ),
            ]
        ),
        panels=panels,
    )
    return built.auto_panel_ids()


def dashboard_json() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    loaded: dict[str, Any] = json.loads(json.dumps(dashboard().to_json_data(), cls=DashboardEncoder))
    return loaded
