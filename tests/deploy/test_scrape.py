"""A real Prometheus scrapes the real services while they generate."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.compose import SERVICES
from tests.deploy.expressions import expressions
from tests.deploy.prometheus import INTERVAL_S, Prometheus
from tests.deploy.promql import names_of
from tests.deploy.trio import ScrapedTrio

# Of the first test, which waits for three processes to start.
pytestmark = pytest.mark.slow

_TOKENS = 200
_TWICE_SCRAPED = f"count(rate(process_cpu_seconds_total[1m])) == {len(SERVICES) + 1}"
_MADE_BY_PROMETHEUS = {"ALERTS"}
# Calls whose first is seen after it has ended, so that no increase is: their time has no quantile yet.
_JUST_BORN = {"grpc_server_handling_seconds_bucket"}
USES = [(where, text) for where, text in expressions() if not names_of(text).metrics & _MADE_BY_PROMETHEUS]
PANELS = [(where, text) for where, text in USES if " panel " in where]


@pytest.fixture(scope="module")
def scraped(
    prometheus_programs: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus after it has watched a generation from before its begin until after its end."""
    folder = tmp_path_factory.mktemp("scrape")
    with (
        ScrapedTrio(small_store, folder) as trio,
        Prometheus(prometheus_programs, folder, trio.metrics_targets()) as prometheus,
    ):
        prometheus.wait_for(lambda: prometheus.query(_TWICE_SCRAPED), "all services to be scraped twice")
        answer = trio.generate([1, 2, 3, 4], _TOKENS)
        assert len(answer["token_ids"]) == _TOKENS
        assert trio.complete([1, 2, 3, 4], _TOKENS)["usage"]["completion_tokens"] == _TOKENS
        # A rate needs two samples of every series, of those too that began with the generation.
        enough = f"min(timestamp(up)) > {time.time() + 3 * INTERVAL_S}"
        prometheus.wait_for(lambda: prometheus.query(enough), "two scrapes after the generation")
        yield prometheus


@pytest.mark.parametrize(("where", "expression"), USES, ids=[where for where, _ in USES])
def test_an_expression_names_only_series_and_labels_that_exist(
    scraped: Prometheus, where: str, expression: str
) -> None:
    names = names_of(expression)
    labels = {metric: scraped.labels(metric) for metric in names.metrics}
    missing = {metric for metric in names.metrics if not labels[metric] and not metric.startswith("zipmoe_forecast")}
    assert missing == set(), where
    assert {(metric, label) for metric, label in names.matched if label not in labels[metric]} == set(), where
    assert names.grouped <= set().union(*labels.values()), where


@pytest.mark.parametrize(("where", "expression"), PANELS, ids=[where for where, _ in PANELS])
def test_a_panel_has_data_after_a_generation(scraped: Prometheus, where: str, expression: str) -> None:
    values = [float(sample["value"][1]) for sample in scraped.query(expression)]
    if "zipmoe_forecast" in expression:
        pytest.skip("nothing is forecast on a machine that has not been measured; tests/integration/test_settings.py")
    assert values != [], where
    if not names_of(expression).metrics & _JUST_BORN:
        assert not any(math.isnan(value) for value in values), where


def test_every_generated_token_is_counted(scraped: Prometheus) -> None:
    (tokens,) = scraped.query("sum(zipmoe_generated_tokens_total)")
    assert float(tokens["value"][1]) == 3 * _TOKENS, "one alone, two through the gateway"


def test_a_healthy_trio_raises_no_critical_alert(scraped: Prometheus) -> None:
    assert scraped.query('ALERTS{severity="critical"}') == []
    assert {rule["health"] for rule in scraped.rules()} == {"ok"}
