"""A real Prometheus on a real collector: every panel shows data, the alert fires on a breach and
resolves."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dashboards import alerts
from dashboards.alerts import Window
from dashboards.pd_colocation import dashboard_json
from probes.feed.socket import FeedServer
from tests.collectors.scripted import second, status
from tests.collectors.stand import collector, daemon
from workloads import panels
from workloads.prometheus import PrometheusError, PrometheusServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"
    ),
]

EVERY_S = 0.25
# The shipped page rule, with windows that a test can wait for.
WINDOWS = [Window("page", long_s=6.0, short_s=2.0, burn=alerts.WINDOWS[0].burn)]
ALERT = alerts.ALERT_NAMES["page"]


class Traffic:
    """Publishes the scripted events again and again; `ttft_ms` may be changed meanwhile."""

    def __init__(self, server: FeedServer) -> None:
        self.ttft_ms = 50
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            for event in second(time.monotonic_ns(), ttft_ms=self.ttft_ms):
                self._server.publish(event)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Traffic, PrometheusServer]]:
    folder: Path = tmp_path_factory.mktemp("live")
    start = time.monotonic()
    with (
        FeedServer(folder / "probe.sock") as server,
        daemon(folder / "npu0.ctl", lambda: status(time.monotonic() - start)),
        collector(
            *("--feed", str(folder / "probe.sock"), "--ctl", str(folder / "npu0.ctl")),
            *("--ttft-slo", "0.5", "--settle", "0.2", "--poll-interval", "0.2"),
        ) as run,
        PrometheusServer(
            {"flexnpu": [run.target]},
            rules=alerts.rules(WINDOWS, interval_s=EVERY_S),
            scrape_interval_s=EVERY_S,
        ) as prometheus,
        Traffic(server) as traffic,
    ):
        yield traffic, prometheus


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, what
        time.sleep(0.2)
    return time.monotonic() - start


def test_every_panel_shows_data(live: tuple[Traffic, PrometheusServer]) -> None:
    _, prometheus = live
    results: list[panels.QueryResult] = []

    def filled() -> bool:
        results[:] = panels.check_panels(prometheus.url, dashboard_json(), window_s=10, rate_interval_s=2)
        return all(result.ok for result in results)

    try:
        wait_until(filled, "panels without data")
    finally:
        print(panels.report(results))
    assert len(results) == len(list(panels.queries(dashboard_json())))


def test_panels_show_the_scripts_figures(live: tuple[Traffic, PrometheusServer]) -> None:
    """The scripted daemon is busy 0.4 of the time and holds each lane for a tenth of it."""
    _, prometheus = live

    def right() -> bool:
        results = panels.check_panels(prometheus.url, dashboard_json(), window_s=10, rate_interval_s=4)
        last = {(result.panel, result.ref): result.last for result in results}
        return (
            last["Device busy", "A"] == pytest.approx(0.4, abs=0.08)
            and last["Gate time", "A"] == pytest.approx(0.1, abs=0.02)
            and last["Gate window and lease", "A"] == pytest.approx(300e-6)
            and last["Interference", "A"] == pytest.approx(1.8, abs=0.3)
        )

    wait_until(right, "wrong figures")


def test_the_alert_fires_on_a_breach_and_resolves(live: tuple[Traffic, PrometheusServer]) -> None:
    traffic, prometheus = live
    wait_until(lambda: bool(prometheus.query(alerts.recorded(6.0))), "no recorded error ratio")
    time.sleep(2)
    assert prometheus.firing(ALERT) == []
    traffic.ttft_ms = 900
    wait_until(lambda: bool(prometheus.firing(ALERT)), "the alert does not fire")
    (labels,) = prometheus.firing(ALERT)
    assert (labels["comm"], labels["severity"]) == ("chat", "page")
    traffic.ttft_ms = 50
    wait_until(lambda: not prometheus.firing(ALERT), "the alert does not resolve")


def test_a_panel_without_data_and_a_bad_query_are_told(live: tuple[Traffic, PrometheusServer]) -> None:
    _, prometheus = live

    def panel(expression: str) -> dict[str, object]:
        return {"title": "x", "targets": [{"refId": "A", "expr": expression}]}

    dashboard = {"panels": [panel("nothing_has_this_name"), panel("sum(("), panel("vector(0) / 0")]}
    results = panels.check_panels(prometheus.url, dashboard)
    assert [result.ok for result in results] == [False, False, False]
    assert results[1].error is not None
    assert "parse error" in results[1].error
    assert panels.report(results).count("none") == 3


def test_a_missing_program_is_named() -> None:
    with (
        pytest.raises(PrometheusError, match="apt-get install"),
        PrometheusServer({}, program="prometheus-of-nowhere"),
    ):
        pass


def test_bad_rules_are_shown() -> None:
    rules = {"groups": [{"name": "x", "rules": [{"record": "x", "expr": "sum(("}]}]}
    with pytest.raises(PrometheusError, match="parse error"), PrometheusServer({}, rules=rules):
        pass
