"""``python -m dashboards [FOLDER]``: write the dashboard and the alert rules, by default to
dashboards/out."""

from __future__ import annotations

import json
from pathlib import Path

import click
import yaml

from dashboards import alerts, pd_colocation


@click.command()
@click.argument(
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).with_name("out"),
)
def main(folder: Path) -> None:
    """Write the Grafana dashboard and the Prometheus rules to FOLDER (dashboards/out)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("pd_colocation.json", json.dumps(pd_colocation.dashboard_json(), indent=2, sort_keys=True) + "\n"),
        ("flexnpu.rules.yml", yaml.safe_dump(alerts.rules(), sort_keys=False, width=120)),
    ):
        (folder / name).write_text(text)
        click.echo(folder / name)


if __name__ == "__main__":
    main()
