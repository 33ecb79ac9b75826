from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import BASE, DEPLOY, SERVICES
from tests.deploy.declared import declared_series
from tests.deploy.expressions import alerts
from tests.deploy.promql import names_of

CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
UNIT_TESTS = sorted((Path(__file__).parent / "alerts").glob("*.yml"))


def promtool(programs: Path, *arguments: str | Path) -> str:
    done = subprocess.run([programs / "promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_configuration_and_rules(prometheus_programs: Path) -> None:
    said = promtool(prometheus_programs, "check", "config", CONFIG)
    assert f"{len(list((DEPLOY / 'prometheus' / 'rules').glob('*.yml')))} rule files found" in said


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_before(prometheus_programs: Path, file: Path) -> None:
    promtool(prometheus_programs, "test", "rules", file)


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    fired = set()
    for file in UNIT_TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            fired |= {item["alertname"] for item in case.get("alert_rule_test", []) if item["exp_alerts"]}
            samples = [sample for item in case.get("promql_expr_test", []) for sample in item["exp_samples"]]
            fired |= {name for name in alerts() for sample in samples if f'"{name}"' in sample["labels"]}
    assert fired == set(alerts())


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in alerts().items():
        assert name.startswith("ZipMoe")
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert set(rule["annotations"]) == {"summary", "description"}, name


@pytest.mark.parametrize("name", alerts())
def test_an_alert_names_only_series_that_services_declare(name: str) -> None:
    assert names_of(alerts()[name]["expr"]).metrics <= declared_series()


def test_the_queue_alert_comes_at_four_fifths_of_the_routers_limit() -> None:
    command = yaml.safe_load(BASE.read_text())["services"]["router"]["command"]
    limit = next(int(flag.partition("=")[2]) for flag in command if flag.startswith("--max-waiting="))
    alert = alerts()["ZipMoeQueueNearlyFull"]
    assert alert["expr"] == f"zipmoe_requests_waiting > {limit * 4 // 5}"
    assert f"Beyond {limit} " in alert["annotations"]["description"]


def test_each_service_is_scraped_under_its_own_name_and_port() -> None:
    services = yaml.safe_load(BASE.read_text())["services"]
    scraped = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]
    }
    assert set(scraped) == {*SERVICES, "gateway"}
    for name, targets in scraped.items():
        port = next(flag.partition("=")[2] for flag in services[name]["command"] if flag.startswith("--metrics-port="))
        assert targets == [f"{name}:{port}"]
        assert "--metrics-address=0.0.0.0" in services[name]["command"]
        assert set(services[name]["networks"]) & set(services["prometheus"]["networks"])
