"""From the serving engines' own metrics pages, through the tracer
(`probes.feed.events.EngineMetrics`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import Metric

_ENGINE: Final = ("url", "engine")
UP: Final = Metric(
    "flexnpu_engine_up",
    "gauge",
    "Whether the engine's own metrics could be read: 1 or 0.",
    ("url",),
    "flexnpu.engine.up",
)
RUNNING: Final = Metric(
    "flexnpu_engine_running_requests",
    "gauge",
    "Requests in the engine's running batch, as it says.",
    _ENGINE,
    "flexnpu.engine.running",
    "{request}",
)
WAITING: Final = Metric(
    "flexnpu_engine_waiting_requests",
    "gauge",
    "Requests that wait for the engine's scheduler, as it says.",
    _ENGINE,
    "flexnpu.engine.waiting",
    "{request}",
)
KV_USAGE: Final = Metric(
    "flexnpu_engine_kv_usage_ratio",
    "gauge",
    "Share of the engine's KV cache that is in use, as it says; the fullest of its caches.",
    _ENGINE,
    "flexnpu.engine.kv_usage",
)
PROMPT_TOKENS: Final = Metric(
    "flexnpu_engine_prompt_tokens_total",
    "counter",
    "Prompt tokens that the engine processed, as it says.",
    _ENGINE,
    "flexnpu.engine.prompt_tokens",
    "{token}",
)
GENERATION_TOKENS: Final = Metric(
    "flexnpu_engine_generation_tokens_total",
    "counter",
    "Tokens that the engine generated, as it says.",
    _ENGINE,
    "flexnpu.engine.generation_tokens",
    "{token}",
)
PREEMPTIONS: Final = Metric(
    "flexnpu_engine_preemptions_total",
    "counter",
    "Requests that the engine preempted for want of KV cache, as it says.",
    _ENGINE,
    "flexnpu.engine.preemptions",
    "{request}",
)
