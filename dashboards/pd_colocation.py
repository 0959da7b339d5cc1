"""The *PD co-location* dashboard: prefill and decode on one NPU, what each does to the other, what the gate
does.

Every query is made from `collectors.metrics`. Variables: `datasource`, a Prometheus; `service`, the services
to show; and `process`, the names of the processes whose lanes are shown, which the daemon knows by no
service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from grafanalib import core
from grafanalib._gen import DashboardEncoder

from collectors.metrics import (
    Metric,
    collector,
    daemon,
    engine,
    gate,
    host,
    lanes,
    process,
    requests,
    steps,
    tracer,
)
from collectors.metrics.metric import PROCESS
from dashboards import alerts
from dashboards.promql import duration

UID: Final = "flexnpu-pd-colocation"
EMPTY_UNLESS: Final = {
    "Waits for block devices and swap": "the kernel accounts for delays (sysctl kernel.task_delayacct=1)",
    "Requests in the engine": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
    "KV cache": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
    "Tokens, as the engine counts them": "flexnpu-probe reads an engine's metrics (--engine-metrics)",
}
"""Panels without data on many machines, and what they need."""
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

_SELECT: Final = 'service=~"$service"'
_SELECT_PROCESS: Final = 'comm=~"$process"'
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


_WHO: Final = "{{service}}{{comm}} {{pid}}"
"""A service, or the process that stands for it."""
_EACH: Final = "{{service}} {{comm}} {{pid}}"
_BY: Final = (*PROCESS, "phase")
_BY_LEGEND: Final = f"{{{{phase}}}} {_WHO}"
_LANE_LEGEND: Final = "{{comm}} {{pid}} lane {{lane}}"


def _ratio(over: Metric, under: Metric, by: Sequence[str], *matchers: str) -> str:
    """`matchers` select series of `over` only."""
    grouped = f"sum by ({', '.join(by)})"
    return f"{grouped} ({rate(over.name, _SELECT, *matchers)}) / {grouped} ({rate(under.name, _SELECT)})"


def _interference() -> str:
    """The median decode step beside a prefill over the median without."""

    def median(flag: str) -> str:
        series = rate(steps.DECODE_DURATION.bucket, _SELECT, f'prefill_in_flight="{flag}"')
        return f"histogram_quantile(0.5, sum by (le, {', '.join(PROCESS)}) ({series}))"

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
            f"{_WHO} over {duration(length)}",
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
                    quantiles(requests.TTFT, PROCESS, _WHO, (0.5, 0.9, 0.99)),
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
                        *quantiles(requests.READ_DELAY, PROCESS, f"read {_WHO}", (0.99,)),
                        *quantiles(requests.SEND_DELAY, PROCESS, f"held {_WHO}", (0.99,)),
                    ],
                ),
                _panel(
                    "Time to second token",
                    requests.SECOND_TOKEN.help,
                    "s",
                    quantiles(requests.SECOND_TOKEN, PROCESS, _WHO),
                ),
                _panel(
                    "Time per output token",
                    f"{requests.TPOT.help} And the single intervals: {requests.TOKEN_INTERVAL.help}",
                    "s",
                    [
                        *quantiles(requests.TPOT, PROCESS, _WHO),
                        *quantiles(requests.TOKEN_INTERVAL, PROCESS, f"{_WHO} interval"),
                    ],
                ),
                _panel(
                    "Requests",
                    requests.REQUESTS.help,
                    "reqps",
                    [
                        per_second(
                            requests.REQUESTS,
                            ["service", "comm", "code", "complete"],
                            "{{service}}{{comm}} {{code}} whole: {{complete}}",
                        )
                    ],
                ),
                _panel(
                    "Requests in flight",
                    f"{requests.IN_FLIGHT.help} {requests.WAITING.help}",
                    "none",
                    [
                        (_selected(requests.IN_FLIGHT.name, _SELECT), f"in flight {_EACH}"),
                        (_selected(requests.WAITING.name, _SELECT), f"waiting {_EACH}"),
                    ],
                ),
                _panel(
                    "Oldest request",
                    f"{requests.OLDEST.help} {requests.OLDEST_WAITING.help}",
                    "s",
                    [
                        (_selected(requests.OLDEST.name, _SELECT), f"in flight {_EACH}"),
                        (_selected(requests.OLDEST_WAITING.name, _SELECT), f"waiting {_EACH}"),
                    ],
                ),
                _panel(
                    "TTFT objective: bad requests, by why",
                    requests.SLO_BAD.help,
                    "reqps",
                    [per_second(requests.SLO_BAD, [*PROCESS, "reason"], f"{{{{reason}}}} {_WHO}")],
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
                            _ratio(requests.SLO_GOOD, requests.SLO_REQUESTS, PROCESS),
                            _WHO,
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
                    quantiles(steps.DURATION, ["phase", *PROCESS], _BY_LEGEND),
                ),
                _panel(
                    "Decode step with and without a prefill in flight",
                    steps.DECODE_DURATION.help,
                    "s",
                    quantiles(
                        steps.DECODE_DURATION,
                        [*PROCESS, "prefill_in_flight"],
                        f"{_WHO} prefill: {{{{prefill_in_flight}}}}",
                    ),
                ),
                _panel(
                    "Interference",
                    "The median decode step beside a prefill, over the median decode step without.",
                    "none",
                    [(_interference(), _WHO)],
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
                        (rate(host.RUNQUEUE.name, _SELECT), f"{{{{scope}}}} {_WHO}"),
                    ],
                ),
                _panel(
                    "CPU of the launching threads",
                    host.CPU.help,
                    "percentunit",
                    [(rate(host.CPU.name, _SELECT), f"{{{{scope}}}} {_WHO}")],
                ),
                _panel(
                    "Waits for block devices and swap",
                    host.IO.help,
                    "percentunit",
                    [(rate(host.IO.name, _SELECT), f"{{{{kind}}}} {{{{scope}}}} {_WHO}")],
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
                    [(rate(lanes.DEVICE_TIME.name, _SELECT_PROCESS), _LANE_LEGEND)],
                ),
                _panel(
                    "Gate time",
                    f"{lanes.GATED.help} As a share of time.",
                    "percentunit",
                    [(rate(lanes.GATED.name, _SELECT_PROCESS), _LANE_LEGEND)],
                ),
                _panel(
                    "Queue depth",
                    f"{lanes.QUEUED.help} {lanes.IN_FLIGHT.help}",
                    "none",
                    [
                        (_selected(lanes.QUEUED.name, _SELECT_PROCESS), f"queued {_LANE_LEGEND}"),
                        (_selected(lanes.IN_FLIGHT.name, _SELECT_PROCESS), f"in flight {_LANE_LEGEND}"),
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
                        (_selected(lanes.PHASE.name, _SELECT_PROCESS), f"{_LANE_LEGEND} {{{{phase}}}}"),
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
                    "Probes by process",
                    process.PROBES.help,
                    "none",
                    [(_selected(process.PROBES.name, _SELECT), _EACH)],
                ),
                _panel(
                    "Clients by server",
                    f"{process.CONNECTIONS.help} {process.UNREAD.help}",
                    "none",
                    [
                        (_selected(process.CONNECTIONS.name, _SELECT), f"connected {_EACH}"),
                        (_selected(process.UNREAD.name, _SELECT), f"unread {_EACH}"),
                    ],
                ),
                _panel(
                    "Sources",
                    f"{collector.FEED_CONNECTED.help} {daemon.UP.help} {daemon.DATA_PLANE_UP.help}",
                    "none",
                    [
                        (collector.FEED_CONNECTED.name, "tracer"),
                        (daemon.UP.name, "daemon npu{{device}}"),
                        (daemon.DATA_PLANE_UP.name, "data plane npu{{device}}"),
                    ],
                    valueMax=1,
                ),
            ],
        ),
    ]


def _variable(name: str, label: str, query: str) -> core.Template:
    """A choice of several values. All of them are also those without the label."""
    return core.Template(
        name=name,
        label=label,
        query=query,
        dataSource=DATASOURCE,
        multi=True,
        includeAll=True,
        allValue=".*",
        default="All",
        refresh=2,
    )


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
                _variable("service", "Service", f"label_values({process.INFO.name}, service)"),
                _variable("process", "Process (lanes)", f"label_values({lanes.QUEUED.name}, comm)"),
            ]
        ),
        panels=panels,
    )
    return built.auto_panel_ids()


def dashboard_json() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    loaded: dict[str, Any] = json.loads(json.dumps(dashboard().to_json_data(), cls=DashboardEncoder))
    return loaded
