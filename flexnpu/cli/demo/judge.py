"""What of a run held: a check for each link of the chain, with its figures."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from dashboards import pd_colocation
from dashboards.alerts import ALERT_NAMES
from flexnpu.cli.demo import report
from flexnpu.cli.demo.phases import Demo
from flexnpu.cli.demo.watch import Watch
from probes.feed.events import is_loss
from workloads.panels import check_panels
from workloads.prometheus import PrometheusServer, query_api

ALERT = ALERT_NAMES["page"]


def judge(demo: Demo, watch: Watch) -> dict[str, Any]:
    """Add the checks of what was measured; returns the figures behind them for the report."""
    _requests(demo)
    found = {"accuracy": _accuracy(demo, watch), "wire": _wire(demo, watch)}
    _gate(demo)
    _losses(demo, watch)
    texts = _texts(demo)
    demo.section("7. Dashboard and alert on the live Prometheus")
    prometheus = demo.chain.prometheus
    assert prometheus is not None
    panels = _panels(demo, prometheus)
    alert = _alert(demo, prometheus)
    return {**found, "losses": watch.losses, "texts": texts, "prometheus": {"panels": panels, "alert": alert}}


def _requests(demo: Demo) -> None:
    requests = [record for phase in demo.phases for record in phase.records]
    failed = [f"{record.server}: {record.error}" for record in requests if not record.ok]
    demo.check(
        "every request answered",
        bool(requests) and not failed,
        f"{len(requests) - len(failed)} of {len(requests)} requests" + (f"; {failed[0]}" if failed else ""),
    )


def _accuracy(demo: Demo, watch: Watch) -> dict[str, Any]:
    targets = demo.plan.targets
    accuracy = report.accuracy(demo.phases, watch, demo.pids)
    demo.check(
        "phases classified",
        (accuracy["phase_accuracy"] or 0.0) >= targets.accuracy
        and accuracy["steps"] >= targets.accuracy_steps,
        f"accuracy {_percent(accuracy['phase_accuracy'])} over {accuracy['steps']} steps "
        f"(with the right token count: {_percent(accuracy['phase_and_tokens_accuracy'])})",
    )
    return accuracy


def _wire(demo: Demo, watch: Watch) -> dict[str, Any]:
    requests = [record for phase in demo.phases for record in phase.records]
    wire = {
        name: report.match_wire(
            [record for record in requests if record.server == name],
            watch.requests(pid),
        )
        for name, pid in demo.pids.items()
    }
    difference = wire["chat"]["ttft_client_minus_wire_ms"]["p50"]
    demo.check(
        "requests timed on the wire",
        all(found["matched"] == found["client_requests"] > 0 for found in wire.values())
        and difference is not None,
        "; ".join(
            f"{name}: {found['matched']} of {found['client_requests']} requests seen"
            for name, found in wire.items()
        ),
    )
    demo.check(
        "the wire's TTFT is the client's",
        difference is not None and abs(difference) <= demo.plan.targets.wire_ttft_ms,
        "nothing to compare" if difference is None else f"client minus wire: p50 {difference:.2f} ms",
    )
    return wire


def _gate(demo: Demo) -> None:
    """Judged by the 95th percentile: also the longest phase has too few steps for the 99th, which one late
    wake-up by the host would make."""
    targets = demo.plan.targets
    by_name = {phase.name: phase.figures for phase in demo.phases}
    steps = [by_name[name]["servers"]["chat"]["decode_step_ms"] for name in ("transparent", "protect-decode")]
    before, after = steps
    detail = "no decode steps to compare"
    ratio = None
    if before["p95"] and after["p95"]:
        ratio = after["p95"] / before["p95"]
        changes = [f"{name} {before[name]:.1f} -> {after[name]:.1f} ms" for name in ("p95", "mean", "p99")]
        detail = f"decode step {', '.join(changes)}; p95 {(1 - ratio) * 100:.0f} % lower"
    demo.check("the gate protects decode", ratio is not None and ratio <= targets.decode_ratio, detail)
    busy = by_name["protect-decode"]["device_busy"]
    demo.check(
        "the device stays busy",
        busy is not None and busy >= targets.device_busy,
        f"{_percent(by_name['transparent']['device_busy'], 0)} without, {_percent(busy, 0)} with policy",
    )


def _losses(demo: Demo, watch: Watch) -> None:
    losses = watch.losses
    counted = {
        f"{source} {name}": count
        for source, counts in losses.items()
        for name, count in counts.items()
        if count and is_loss(name)
    }
    demo.check(
        "losses are counted",
        {"steps", "wire"} <= set(losses),
        ", ".join(f"{name} {count}" for name, count in sorted(counted.items())) or "nothing lost",
    )


def _texts(demo: Demo) -> dict[str, int]:
    """Greedy decoding is deterministic: the same prompt gives the same text in both phases."""
    texts: dict[tuple[str, int], list[str]] = {}
    for phase in demo.phases[1:]:
        for record in phase.records:
            if record.ok and record.text_sha256:
                texts.setdefault((record.server, record.index), []).append(record.text_sha256)
    pairs = [found for found in texts.values() if len(found) > 1]
    differing = sum(len(set(found)) > 1 for found in pairs)
    demo.check(
        "gating changes no text",
        bool(pairs) and differing == 0,
        f"{len(pairs)} greedy answers compared between the phases, {differing} differ",
    )
    return {"answers": len(pairs), "differing": differing}


def _panels(demo: Demo, prometheus: PrometheusServer) -> list[dict[str, Any]]:
    """Ask the Prometheus that watched it all for every panel of the dashboard."""
    results = check_panels(prometheus.url, pd_colocation.dashboard_json(), window_s=demo.seconds)
    # A query that fails is never excused.
    excused = {r.panel for r in results if not r.ok and not r.error} & pd_colocation.EMPTY_UNLESS.keys()
    empty = sorted({f"{r.panel} {r.ref}" for r in results if not r.ok and r.panel not in excused})
    detail = f"{len(results)} queries"
    if excused:
        detail += f"; not for what the demo lacks: {', '.join(sorted(excused))}"
    if empty:
        detail += f"; empty: {', '.join(empty)}"
    demo.check("every panel of the dashboard shows data", bool(results) and not empty, detail)
    return [asdict(result) for result in results]


def _alert(demo: Demo, prometheus: PrometheusServer) -> dict[str, Any]:
    service = "chat"

    def firing() -> bool:
        return any(labels.get("service") == service for labels in prometheus.firing(ALERT))

    start = time.monotonic()
    while (still := firing()) and time.monotonic() - start < demo.plan.resolve_s:
        time.sleep(0.5)
    fired = _alert_times(prometheus, service, demo.seconds)
    seconds = {phase.name: sum(phase.whole.holds(t) for t in fired) for phase in demo.phases}
    demo.check(
        "the TTFT alert fires under the flood and resolves",
        seconds["transparent"] > 0 and not still,
        f"for chat, {seconds['transparent']} s without policy, {seconds['protect-decode']} s with it; "
        + ("still firing at the end" if still else "resolved at the end"),
    )
    return {"name": ALERT, "firing_s": seconds, "resolved": not still}


def _alert_times(prometheus: PrometheusServer, service: str, window_s: float) -> list[int]:
    """Seconds at which the alert fired for a service, CLOCK_MONOTONIC ns."""
    now, now_ns = time.time(), time.monotonic_ns()
    query = f'ALERTS{{alertname="{ALERT}",alertstate="firing",service="{service}"}}'
    found = query_api(
        prometheus.url,
        "query_range",
        {"query": query, "start": f"{now - window_s:.3f}", "end": f"{now:.3f}", "step": "1"},
    )
    times = {float(t) for series in found["result"] for t, _ in series["values"]}
    return sorted(now_ns - round((now - t) * 1e9) for t in times)


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "unknown" if fraction is None else f"{fraction * 100:.{digits}f} %"
