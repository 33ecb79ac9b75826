from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import BASE, DEPLOY
from tests.deploy.declared import declared_series
from tests.deploy.expressions import DASHBOARDS, expressions, panels
from tests.deploy.promql import names_of

PROVISIONING = DEPLOY / "grafana" / "provisioning"


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_a_dashboard_names_only_series_that_services_declare() -> None:
    declared = declared_series()
    unknown = {where: names_of(text).metrics - declared for where, text in expressions()}
    assert {where: names for where, names in unknown.items() if names} == {}


def test_the_dashboards_show_every_series_of_ours() -> None:
    shown = {name for where, text in expressions() for name in names_of(text).metrics if not where.startswith("alert")}
    ours = {name for name in declared_series() if name.startswith("zipmoe_")}
    # One of a histogram's three series is enough.
    shown |= {name.rpartition("_")[0] + end for name in shown for end in ("_bucket", "_sum", "_count")}
    assert ours - shown == set()


def test_panels_have_their_own_ids_and_do_not_overlap(dashboard: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(ids) == len(set(ids))
    for panel in panels(dashboard):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_panel_says_what_it_shows_in_which_unit(dashboard: Path) -> None:
    for panel in panels(dashboard):
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))
        assert all(target["legendFormat"] for target in panel["targets"])


def test_every_panel_uses_the_chosen_data_source(dashboard: Path) -> None:
    document = json.loads(dashboard.read_text())
    assert [item["name"] for item in document["templating"]["list"]] == ["datasource"]
    for panel in panels(dashboard):
        for part in (panel, *panel.get("targets", [])):
            if panel["type"] != "row":
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_provisioned_with_the_composed_prometheus_and_the_mounted_dashboards() -> None:
    services = yaml.safe_load(BASE.read_text())["services"]
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"][0].endswith(":9090")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "zipmoe.yml").read_text())["providers"]
    mounts = {mount["target"]: mount["source"] for mount in services["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert (DEPLOY / "grafana" / "dashboards" / Path(home).name).exists()
