"""Every PromQL expression that deploy/ ships: of alert rules and of the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.compose import DEPLOY

RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def alerts() -> dict[str, dict[str, Any]]:
    """All alert rules by name."""
    return {
        rule["alert"]: rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """All panels of a dashboard, rows included, in file order."""
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yields where each expression is used and the expression, with Grafana's variables filled in."""
    for name, rule in alerts().items():
        yield f"alert {name}", rule["expr"]
    for path in DASHBOARDS:
        document = json.loads(path.read_text())
        for annotation in document["annotations"]["list"]:
            yield f"{path.name} annotation {annotation['name']}", annotation["expr"]
        for panel in document["panels"]:
            for target in panel.get("targets", []):
                where = f"{path.name} panel {panel['title']!r} {target['refId']}"
                yield where, target["expr"].replace("$__rate_interval", "1m")
