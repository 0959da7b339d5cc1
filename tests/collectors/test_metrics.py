"""The list of metrics keeps the conventions of Prometheus and OpenTelemetry."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from prometheus_client import generate_latest

from collectors import metrics
from collectors.aggregate import Aggregator
from collectors.daemons import samples_of
from collectors.metrics import METRICS
from collectors.metrics.metric import ATTRIBUTES, Metric
from collectors.prometheus import PrometheusSink
from tests.collectors.scripted import S, second, status


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"flexnpu_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit)
    stem = metric.name.removesuffix("_total")
    assert unit is None or stem.endswith(unit)
    assert not any(phase in metric.name.split("_") for phase in ("prefill", "mixed"))
    assert set(metric.labels) <= set(ATTRIBUTES)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert re.fullmatch(r"(gen_ai|flexnpu)(\.[a-z0-9_]+)+", metric.otel)
    assert metric.help.endswith((".", ")."))


def test_names_are_unique() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS) == len({m.otel for m in METRICS})


def test_the_conventions_names_are_theirs() -> None:
    theirs = {value for name, value in vars(gen_ai_metrics).items() if name.isupper()}
    ours = {m.otel for m in METRICS if m.otel.startswith("gen_ai.")}
    assert ours <= theirs
    assert {metrics.requests.TTFT.otel, metrics.requests.TPOT.otel, metrics.requests.DURATION.otel} == ours


def test_promtool_finds_nothing_to_say() -> None:
    """promtool lints a scrape in which every metric of the list occurs."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    sink = PrometheusSink([lambda: aggregator.snapshot(), lambda: list(samples_of(status()))])
    aggregator = Aggregator([sink], ttft_slo_s=1, ttft_objective=0.99)
    aggregator.connected = True
    for event in second(10 * S):
        aggregator.take(event)
    aggregator.advance(20 * S)
    sink.add(metrics.steps.LATE_PREFILLS, ())
    scrape = generate_latest(sink.registry)
    seen = set(re.findall(r"^# TYPE (\S+) ", scrape.decode(), re.M))
    assert seen >= {m.name for m in METRICS}
    done = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, timeout=60, check=False
    )
    # A count of what an info metric says has no unit; nothing else may be said.
    assert (done.returncode, done.stderr.decode()) == (0, "")
