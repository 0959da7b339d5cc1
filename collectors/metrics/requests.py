"""From requests, as the tracer sees them on the servers' sockets (`probes.feed.events.RequestTiming`).

Histograms of time to first token take every request that had a first token; those of the whole answer
(intervals, time per output token, duration) take requests that were seen whole (``complete="true"`` in
`REQUESTS`).
"""

from __future__ import annotations

from typing import Final

from collectors.metrics.metric import DELAY_BUCKETS, PROCESS, STEP_BUCKETS, TTFT_BUCKETS, Metric

TTFT: Final = Metric(
    "flexnpu_ttft_seconds",
    "histogram",
    "Time to first token: from the arrival of a request at the server's socket to the write of the "
    "first chunk with "
    "content.",
    (*PROCESS, "operation"),
    "gen_ai.server.time_to_first_token",
    "s",
    TTFT_BUCKETS,
)
SECOND_TOKEN: Final = Metric(
    "flexnpu_time_to_second_token_seconds",
    "histogram",
    "From the arrival of a request to the write of its second chunk with content: shows a wait "
    "between prefill and "
    "decode, which TTFT and TPOT both hide.",
    (*PROCESS, "operation"),
    "flexnpu.server.time_to_second_token",
    "s",
    TTFT_BUCKETS,
)
TOKEN_INTERVAL: Final = Metric(
    "flexnpu_token_interval_seconds",
    "histogram",
    "Time between two consecutive chunks with content of one response. Chunks written by one call "
    "are 0 apart.",
    (*PROCESS, "operation"),
    "flexnpu.server.token_interval",
    "s",
    STEP_BUCKETS,
)
TPOT: Final = Metric(
    "flexnpu_tpot_seconds",
    "histogram",
    "Time per output token after the first, one value a request: (last chunk - first chunk) / (tokens - 1). "
    "Tokens are what the server says in usage, else chunks.",
    (*PROCESS, "operation"),
    "gen_ai.server.time_per_output_token",
    "s",
    STEP_BUCKETS,
)
TTFT_PART: Final = Metric(
    "flexnpu_ttft_part_seconds",
    "histogram",
    "TTFT split by the steps that served the request. part: queue (before and between its own prefill "
    "steps), compute (in them), gate (held by the gate meanwhile; absent without a daemon), send (from the "
    "last one's end until the first content left). Of a request that other servers worked at, such as a "
    "proxy's before a prefill and a decode instance: proxy, prefill_queue, prefill, transfer, decode_queue, "
    "decode_wait, first_step, gate, send (probes/requests/parts.py). A part that was not seen is absent.",
    (*PROCESS, "operation", "part"),
    "flexnpu.server.time_to_first_token.part",
    "s",
    TTFT_BUCKETS,
)
UNJOINED: Final = Metric(
    "flexnpu_requests_unjoined_total",
    "counter",
    "Requests with a first token for which no step was found, so that their TTFT is not split.",
    (*PROCESS, "operation"),
    "flexnpu.server.requests.unjoined",
    "{request}",
)
INNER: Final = Metric(
    "flexnpu_requests_inner_total",
    "counter",
    "Requests that came from another watched server, such as a proxy: parts of a request there. They count "
    "in no objective, and where both servers are one service, in no other metric of requests. role: what "
    "the request asks of an instance that does one phase.",
    (*PROCESS, "operation", "role"),
    "flexnpu.server.requests.inner",
    "{request}",
)
READ_DELAY: Final = Metric(
    "flexnpu_request_read_delay_seconds",
    "histogram",
    "From the arrival of a request at the server's socket until the server read it; part of the TTFT.",
    (*PROCESS, "operation"),
    "flexnpu.server.request.read_delay",
    "s",
    DELAY_BUCKETS,
)
SEND_DELAY: Final = Metric(
    "flexnpu_first_content_held_seconds",
    "histogram",
    "From the write of the first content until the kernel sent it; part of the TTFT. Some 40 ms tell of a "
    "server without TCP_NODELAY.",
    (*PROCESS, "operation"),
    "flexnpu.server.first_content.held",
    "s",
    DELAY_BUCKETS,
)
DURATION: Final = Metric(
    "flexnpu_request_duration_seconds",
    "histogram",
    "From the arrival of a request to the end of its response.",
    (*PROCESS, "operation"),
    "gen_ai.server.request.duration",
    "s",
    TTFT_BUCKETS,
)
REQUESTS: Final = Metric(
    "flexnpu_requests_total",
    "counter",
    'Requests that ended. code: HTTP status, "none" if there was no response. complete: seen whole, '
    "from first byte "
    "to last.",
    (*PROCESS, "operation", "code", "complete"),
    "flexnpu.server.requests",
    "{request}",
)
IN_FLIGHT: Final = Metric(
    "flexnpu_requests_in_flight",
    "gauge",
    "Requests that have arrived at the server's sockets and were not answered in full.",
    PROCESS,
    "flexnpu.server.requests.in_flight",
    "{request}",
)
OLDEST: Final = Metric(
    "flexnpu_oldest_request_age_seconds",
    "gauge",
    "Age of the oldest request in flight; 0 when there is none.",
    PROCESS,
    "flexnpu.server.requests.oldest_age",
    "s",
)
WAITING: Final = Metric(
    "flexnpu_requests_waiting",
    "gauge",
    "Requests in flight that asked for a stream and have had no token yet. Left out are those whose body did "
    "not show what they ask for.",
    PROCESS,
    "flexnpu.server.requests.waiting",
    "{request}",
)
OLDEST_WAITING: Final = Metric(
    "flexnpu_oldest_waiting_request_age_seconds",
    "gauge",
    "Age of the oldest request that waits for its first token; 0 when none does.",
    PROCESS,
    "flexnpu.server.requests.oldest_waiting_age",
    "s",
)
SLO_REQUESTS: Final = Metric(
    "flexnpu_ttft_slo_requests_total",
    "counter",
    "Requests that the TTFT objective covers: those that had a first token, those whose stream said that "
    "they failed, and requests for generation that failed (5xx) or were cut off before a first token. A "
    "request that waits for its first token is counted, once, when flexnpu_ttft_slo_threshold_seconds have "
    "passed, and not when it ends.",
    PROCESS,
    "flexnpu.slo.ttft.requests",
    "{request}",
)
SLO_GOOD: Final = Metric(
    "flexnpu_ttft_slo_good_requests_total",
    "counter",
    "Covered requests whose first token came within flexnpu_ttft_slo_threshold_seconds and whose stream did "
    "not say that they failed.",
    PROCESS,
    "flexnpu.slo.ttft.good_requests",
    "{request}",
)
SLO_BAD: Final = Metric(
    "flexnpu_ttft_slo_bad_requests_total",
    "counter",
    "Covered requests that are not good, by why. With flexnpu_ttft_slo_good_requests_total they are all.",
    (*PROCESS, "reason"),
    "flexnpu.slo.ttft.bad_requests",
    "{request}",
)
BAD_REASONS: Final = ("late", "waiting", "error", "status", "cut")
