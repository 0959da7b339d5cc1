"""From model steps (`probes.feed.events.Step`), and which of them ran beside each other
(`collectors.interference`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import PROCESS, STEP_BUCKETS, Metric

STEPS: Final = Metric(
    "flexnpu_steps_total",
    "counter",
    "Model steps (forward passes), and other runs of launches.",
    (*PROCESS, "phase"),
    "flexnpu.steps",
    "{step}",
)
TOKENS: Final = Metric(
    "flexnpu_step_tokens_total",
    "counter",
    "Tokens processed by steps over all their sequences, without padding as far as that is known; steps of "
    "unknown size are left out.",
    (*PROCESS, "phase"),
    "flexnpu.step.tokens",
    "{token}",
)
UNSIZED: Final = Metric(
    "flexnpu_steps_unsized_total",
    "counter",
    "Steps whose token count nothing showed.",
    (*PROCESS, "phase"),
    "flexnpu.steps.unsized",
    "{step}",
)
LAUNCHES: Final = Metric(
    "flexnpu_launches_total",
    "counter",
    "Launches seen in steps. kind: operator, only in steps for which the tracer probed every launch; or "
    "graph (one for a whole captured graph).",
    (*PROCESS, "phase", "kind"),
    "flexnpu.launches",
    "{launch}",
)
COUNTED: Final = Metric(
    "flexnpu_counted_steps_total",
    "counter",
    "Steps for which the tracer probed every launch: what the operators in flexnpu_launches_total belong to.",
    (*PROCESS, "phase"),
    "flexnpu.steps.counted",
    "{step}",
)
DURATION: Final = Metric(
    "flexnpu_step_duration_seconds",
    "histogram",
    "Step time on the device, as far as the host can see it: from a step's first operator, or from the end "
    "of the step before if the device was still busy with that, until its last operator is over.",
    (*PROCESS, "phase"),
    "flexnpu.step.duration",
    "s",
    STEP_BUCKETS,
)
DECODE_DURATION: Final = Metric(
    "flexnpu_decode_step_duration_seconds",
    "histogram",
    "Decode step time, apart for steps during which a prefill or mixed step ran on another lane of "
    "the same device "
    "(collectors/interference.py) and steps without.",
    (*PROCESS, "prefill_in_flight"),
    "flexnpu.decode_step.duration",
    "s",
    STEP_BUCKETS,
)
LATE_PREFILLS: Final = Metric(
    "flexnpu_interference_late_prefills_total",
    "counter",
    "Prefill steps that became known after decode steps beside them had been counted as undisturbed.",
    (),
    "flexnpu.interference.late_prefills",
    "{step}",
)
