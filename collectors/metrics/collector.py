"""From the collector, of itself."""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import Metric

FEED_CONNECTED: Final = Metric(
    "flexnpu_feed_connected",
    "gauge",
    "Whether the tracer's feed is being read: 1 or 0. At 0 nothing above is measured.",
    (),
    "flexnpu.feed.connected",
)
SLO_THRESHOLD: Final = Metric(
    "flexnpu_ttft_slo_threshold_seconds",
    "gauge",
    "The TTFT that a good request keeps.",
    (),
    "flexnpu.slo.ttft.threshold",
    "s",
)
SLO_OBJECTIVE: Final = Metric(
    "flexnpu_ttft_slo_objective_ratio",
    "gauge",
    "The share of covered requests that shall be good.",
    (),
    "flexnpu.slo.ttft.objective",
)
TRACER_SILENCE: Final = Metric(
    "flexnpu_tracer_silence_seconds",
    "gauge",
    "Time since the tracer last said anything; it speaks every second. Absent while the feed is not "
    "connected.",
    (),
    "flexnpu.tracer.silence",
    "s",
)
EVICTED: Final = Metric(
    "flexnpu_series_evicted_total",
    "counter",
    "Services and processes whose series were given up early, because there were more than the collector "
    "keeps.",
    (),
    "flexnpu.series.evicted",
    "{process}",
)
