"""The alert rules, by promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dashboards import alerts
from dashboards.alerts import Window
from dashboards.promql import duration

SCRIPTS = sorted(Path(__file__).parent.glob("*.promtool.yml"))


def promtool(*arguments: str, cwd: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def strip_annotations(rules: dict[str, list[dict[str, list[dict[str, object]]]]]) -> None:
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)


@pytest.mark.parametrize("windows", [alerts.WINDOWS, [w.scaled(1 / 360) for w in alerts.WINDOWS]])
def test_rules_are_valid(tmp_path: Path, windows: list[Window]) -> None:
    (tmp_path / "rules.yml").write_text(json.dumps(alerts.rules(windows)))
    promtool("check", "rules", "rules.yml", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_rules_do_what_the_script_says(tmp_path: Path, script: Path) -> None:
    rules = alerts.rules()
    # The script is about when alerts fire; their words would have to be repeated in it.
    strip_annotations(rules)
    (tmp_path / "rules.yml").write_text(json.dumps(rules))
    (tmp_path / "script.yml").write_text(script.read_text())
    promtool("test", "rules", "script.yml", cwd=tmp_path)


def test_every_alert_has_silence_firing_and_resolving() -> None:
    """By its expected alerts in the order of time, over all scripts."""
    shipped = {
        rule["alert"] for group in alerts.rules()["groups"] for rule in group["rules"] if "alert" in rule
    }
    seen: dict[str, set[str]] = {name: set() for name in shipped}
    for script in SCRIPTS:
        for test in yaml.safe_load(script.read_text())["tests"]:
            fired: set[str] = set()
            for check in test.get("alert_rule_test", ()):
                name = check["alertname"]
                if check["exp_alerts"]:
                    fired.add(name)
                    seen[name].add("fires")
                else:
                    seen[name].add("resolves" if name in fired else "silent")
    assert seen == {name: {"silent", "fires", "resolves"} for name in shipped}


def test_every_alert_says_what_to_do() -> None:
    for group in alerts.rules()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("page", "ticket")
                assert rule["annotations"]["summary"]
                assert rule["annotations"]["description"].endswith((".", "?", "--feed"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3600, "1h"),
        (300, "5m"),
        (90, "90s"),
        (0.25, "250ms"),
        (259200, "3d"),
        (0.0001, "1ms"),
        (1.5, "1500ms"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
