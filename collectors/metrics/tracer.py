"""From the tracer, of itself (`probes.feed.events.Losses`)."""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import Metric

LOST_EVENTS: Final = Metric(
    "flexnpu_lost_events_total",
    "counter",
    "What the tracer could not deliver, decide or read, since it started. source: steps, wire or "
    "feed; kind: see "
    "probes/steps/tracer.py, probes/requests/wire.py, probes/requests/hops.py and probes/feed/socket.py.",
    ("source", "kind"),
    "flexnpu.lost.events",
    "{event}",
)
LOST_BYTES: Final = Metric(
    "flexnpu_lost_bytes_total",
    "counter",
    "Bytes of traffic that the wire tracer did not copy; those beyond its copy limit are no loss of timing.",
    ("source", "kind"),
    "flexnpu.lost.bytes",
    "By",
)
RECORDS: Final = Metric(
    "flexnpu_tracer_records_total",
    "counter",
    "Records that the tracer's kernel part sent, and those received from it: the other half of "
    "flexnpu_lost_events_total.",
    ("source", "kind"),
    "flexnpu.tracer.records",
    "{record}",
)
