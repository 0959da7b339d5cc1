"""Alert rules: the TTFT objective by burn rate over several windows, and the measurement's own health.

Method of the burn-rate alerts: Google's SRE Workbook, chapter 5, "Alerting on SLOs", sixth approach. The
error ratio is the share of covered requests that had no first token in time, or failed; divided by the error
budget (1 - objective) it is the burn rate, at which 1 spends the budget exactly over the objective's period.
An alert fires when the burn rate exceeds a threshold over a long window, which shows that it matters, and
over a short one of a twelfth, which shows that it goes on, so that the alert ends soon after the trouble.
Thresholds for a period of 30 days:

    severity   budget spent   long   short   burn rate
    page       2 %            1 h    5 min   14.4
    page       5 %            6 h    30 min  6
    ticket     10 %           1 d    2 h     3
    ticket     10 %           3 d    6 h     1

The objective is read from the collector (`collector.SLO_OBJECTIVE`), which alone knows it. Budgets are those
of services: a restart begins no new one. A process of which no service is known has a budget of its own.
`measuring` has the alerts for what would make an objective look met because nobody measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from collectors.metrics import Metric, collector, requests
from collectors.metrics.metric import PROCESS
from dashboards import measuring
from dashboards.measuring import WHO
from dashboards.promql import duration

Severity = Literal["page", "ticket"]


@dataclass(frozen=True)
class Window:
    """Fires when the budget burns faster than `burn` over both windows, lengths in seconds."""

    severity: Severity
    long_s: float
    short_s: float
    burn: float

    def scaled(self, factor: float) -> Window:
        """The same with both windows `factor` times as long; a test cannot wait for an hour."""
        return Window(self.severity, self.long_s * factor, self.short_s * factor, self.burn)


_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
WINDOWS: Final = (
    Window("page", _HOUR, 5 * _MINUTE, 14.4),
    Window("page", 6 * _HOUR, 30 * _MINUTE, 6.0),
    Window("ticket", _DAY, 2 * _HOUR, 3.0),
    Window("ticket", 3 * _DAY, 6 * _HOUR, 1.0),
)

ALERT_NAMES: Final[dict[Severity, str]] = {
    "page": "FlexnpuTtftBudgetBurn",
    "ticket": "FlexnpuTtftBudgetBurnSlow",
}


def error_ratio(window_s: float) -> str:
    """PromQL: the share of bad requests over a window, by service; nothing when there were none."""
    length = duration(window_s)

    def over(metric: Metric) -> str:
        return f"sum by ({', '.join(PROCESS)}) (rate({metric.name}[{length}]))"

    return f"1 - {over(requests.SLO_GOOD)} / {over(requests.SLO_REQUESTS)}"


def error_budget() -> str:
    """PromQL: the error ratio that the objective allows, a scalar."""
    return f"(1 - scalar(max({collector.SLO_OBJECTIVE.name})))"


def recorded(window_s: float) -> str:
    """The name under which the error ratio over a window is recorded."""
    return f"service:flexnpu_ttft_slo_errors:ratio_rate{duration(window_s)}"


def rules(windows: Sequence[Window] = WINDOWS, *, interval_s: float = 30.0) -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    every = duration(interval_s)
    lengths = sorted({length for window in windows for length in (window.short_s, window.long_s)})
    burn = [
        _burn_alert(severity, [window for window in windows if window.severity == severity])
        for severity in ALERT_NAMES
        if any(window.severity == severity for window in windows)
    ]
    return {
        "groups": [
            {
                "name": "flexnpu-ttft-slo-records",
                "interval": every,
                "rules": [{"record": recorded(length), "expr": error_ratio(length)} for length in lengths],
            },
            {"name": "flexnpu-ttft-slo-alerts", "interval": every, "rules": burn},
            {"name": "flexnpu-measurement", "interval": every, "rules": measuring.rules()},
        ]
    }


def _burn_alert(severity: Severity, windows: Sequence[Window]) -> dict[str, Any]:
    def exceeded(window: Window) -> str:
        limit = f"{window.burn:g} * {error_budget()}"
        return f"({recorded(window.long_s)} > {limit} and {recorded(window.short_s)} > {limit})"

    longest = max(windows, key=lambda window: window.long_s)
    return {
        "alert": ALERT_NAMES[severity],
        "expr": " or ".join(exceeded(window) for window in windows),
        "labels": {"severity": severity},
        "annotations": {
            "summary": f"{WHO} spends its time-to-first-token budget too fast",
            "description": (
                f"{{{{ $value | humanizePercentage }}}} of the requests to {WHO} had no first token in time "
                "or failed; flexnpu_ttft_slo_bad_requests_total tells why. At this rate the error budget is "
                f"gone long before its period ends (windows up to {duration(longest.long_s)}). Look at the "
                "PD co-location dashboard: is a prefill in flight beside the decode steps, does the gate "
                "hold the server's lane, is the device busy?"
            ),
        },
    }
