"""The dashboard as Grafana would import it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from collectors.metrics import METRICS, collector, daemon, gate, lanes, requests, steps, tracer
from dashboards.pd_colocation import dashboard_json
from workloads import panels

DASHBOARD = dashboard_json()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = list(panels.queries(DASHBOARD))
VARIABLES = {"process": ".*", "service": ".*", "datasource": "x", "__rate_interval": "1m"}


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for a, b in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


@pytest.mark.parametrize("panel", PANELS, ids=lambda p: p["title"])
def test_panels_say_what_they_show(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["fieldConfig"]["defaults"]["unit"]
    refs = [target["refId"] for target in panel["targets"]]
    assert refs
    assert len(set(refs)) == len(refs)
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


@pytest.mark.parametrize(("title", "ref", "expression"), QUERIES)
def test_queries_use_the_lists_names_and_labels(title: str, ref: str, expression: str) -> None:
    by_series = {series: metric for metric in METRICS for series in metric.series}
    used = set(re.findall(r"\bflexnpu_\w+", expression))
    assert used <= set(by_series)
    labels = {label for series in used for label in by_series[series].labels} | {"le"}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        assert {matcher.split("=")[0].strip(" !~") for matcher in matchers.split(",")} <= labels
    panel = next(panel for panel in PANELS if panel["title"] == title)
    legend = next(target["legendFormat"] for target in panel["targets"] if target["refId"] == ref)
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels


def test_queries_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    rules = [
        {"record": f"panel:query{i}", "expr": panels.fill_in(expression, VARIABLES)}
        for i, (_, _, expression) in enumerate(QUERIES)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_brief_is_covered() -> None:
    """Each of these is shown by some panel."""
    shown = " ".join(expression for _, _, expression in QUERIES)
    for metric in (
        *(
            requests.TTFT,
            requests.TPOT,
            requests.TOKEN_INTERVAL,
            requests.SECOND_TOKEN,
            steps.DURATION,
        ),
        *(
            steps.DECODE_DURATION,
            steps.STEPS,
            steps.TOKENS,
            steps.LAUNCHES,
            lanes.GATED,
        ),
        *(
            gate.WINDOW,
            gate.LEASE,
            daemon.DEVICE_BUSY,
            lanes.QUEUED,
            tracer.LOST_EVENTS,
        ),
        *(requests.SLO_GOOD, requests.SLO_REQUESTS, collector.FEED_CONNECTED),
    ):
        assert any(series in shown for series in metric.series), metric.name


def test_variables() -> None:
    by_name = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert by_name["datasource"]["type"] == "datasource"
    assert by_name["process"]["includeAll"]
    assert by_name["service"]["includeAll"]
    used = {
        name
        for _, _, e in QUERIES
        for pair in re.findall(r"\$(?:\{(\w+)\}|(\w+))", e)
        for name in pair
        if name
    }
    assert used <= {*by_name, "__rate_interval"}


def test_make_dashboards_writes_files(tmp_path: Path) -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "dashboards", str(tmp_path / "out")],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "pd_colocation.json").read_text()) == DASHBOARD
    assert "FlexnpuTtftBudgetBurn" in (tmp_path / "out" / "flexnpu.rules.yml").read_text()


def test_fill_in_knows_its_variables() -> None:
    assert panels.fill_in('a{b=~"$process"}[${__rate_interval}]', VARIABLES) == 'a{b=~".*"}[1m]'
    with pytest.raises(KeyError):
        panels.fill_in("$nobody", VARIABLES)
