from __future__ import annotations

from pathlib import Path

from tests.deploy.compose import SERVICES
from tests.deploy.expressions import alerts, expressions
from tests.deploy.prometheus import Prometheus

_CLOSED_PORT = "127.0.0.1:1"


def test_prometheus_accepts_every_expression_and_tells_that_services_are_down(
    prometheus_programs: Path, tmp_path: Path
) -> None:
    targets = dict.fromkeys((*SERVICES, "gateway"), _CLOSED_PORT)
    with Prometheus(prometheus_programs, tmp_path, targets) as prometheus:
        for _, expression in expressions():
            prometheus.query(expression)
        assert {rule["name"] for rule in prometheus.rules()} == set(alerts())
        down = 'count by (job) (ALERTS{alertname="ZipMoeServiceDown"})'
        prometheus.wait_for(
            lambda: {sample["metric"]["job"] for sample in prometheus.query(down)} == set(SERVICES), "all to be told"
        )
