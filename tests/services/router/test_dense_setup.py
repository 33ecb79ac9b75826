"""Whether a router compresses dense weights, what it tells, and what it refuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.calibration.test_calibration_file import CALIBRATION
from zipmoe.calibration.calibration import StoreSpeed
from zipmoe.calibration.model_speed import CompressedDense, ModelSpeed
from zipmoe.errors import BudgetInfeasible
from zipmoe.model.build.dense_forms import DenseForms
from zipmoe.planning.costs import RowCost
from zipmoe.services.router import dense_setup
from zipmoe.services.router.config import RouterConfig
from zipmoe.services.router.dense_setup import compresses_dense, tell_dense
from zipmoe.services.router.metrics import RouterMetrics

MANIFEST: Any = SimpleNamespace(digest="d1", dense_bytes=1000)
FORMS = DenseForms(Counter(nibble=3, bf16=1), Counter(nibble=600, bf16=20), 800, Counter({"odd": 1}), 50)


def config(**settings: Any) -> RouterConfig:
    return RouterConfig(store=Path("store"), **settings)


def calibrated(monkeypatch: pytest.MonkeyPatch, form: str, compressed_s: float) -> None:
    cost = RowCost(1.0, 0.0)
    compressed = CompressedDense(form, 10, RowCost(compressed_s, 0.0))
    known = CALIBRATION.stores["d1"]
    speed = StoreSpeed(
        known.codec,
        known.expert_bytes,
        0.0,
        known.recover,
        {"cpu": ModelSpeed(cost, None, cost, compressed=compressed)},
    )
    calibration = SimpleNamespace(stores={"d1": speed})
    monkeypatch.setattr(dense_setup, "machine_identity", lambda path: None)
    monkeypatch.setattr(dense_setup, "load_calibration", lambda identity: calibration)


@pytest.mark.parametrize(
    ("form", "seconds", "wanted"),
    [("nibble", 0.8, True), ("nibble", 1.0, True), ("nibble", 1.2, False), ("", 1.0, False)],
)
def test_auto_asks_the_calibration(form: str, seconds: float, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated(monkeypatch, form, seconds)
    assert compresses_dense(config(), MANIFEST, "cpu") is wanted


def test_auto_stays_bf16_on_a_machine_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_setup, "machine_identity", lambda path: None)
    monkeypatch.setattr(dense_setup, "load_calibration", lambda identity: None)
    assert not compresses_dense(config(), MANIFEST, "cpu")


def test_a_setting_counts_only_where_the_kernels_compute() -> None:
    assert compresses_dense(config(dense="compressed"), MANIFEST, "cpu")
    assert not compresses_dense(config(dense="bf16"), MANIFEST, "cpu")
    assert not compresses_dense(config(dense="compressed"), MANIFEST, "cuda")
    assert not compresses_dense(config(dense="compressed", linear="torch"), MANIFEST, "cpu")


def told(settings: RouterConfig, forms: DenseForms = FORMS) -> CollectorRegistry:
    registry = CollectorRegistry()
    model: Any = SimpleNamespace(dense_forms=forms, dense=SimpleNamespace(nbytes=800))
    tell_dense(settings, MANIFEST, model, RouterMetrics(registry))
    return registry


def test_the_metrics_tell_forms_and_bytes() -> None:
    registry = told(config(dense="compressed"))
    for form, count in (("nibble", 3), ("tile", 0), ("bf16", 1)):
        assert registry.get_sample_value("zipmoe_router_dense_matrices", {"form": form}) == count
    assert registry.get_sample_value("zipmoe_router_dense_bytes") == 850
    assert registry.get_sample_value("zipmoe_router_dense_saved_bytes") == FORMS.saved_bytes == 150


def test_weights_that_take_more_than_planned_are_refused_with_the_reason() -> None:
    budget: dict[str, Any] = {"dense": "compressed", "memory_budget": 10_000}
    told(config(**budget, dense_bytes=850))
    with pytest.raises(
        BudgetInfeasible, match="take 850 bytes in memory, the plan says 849; left bf16: 1 x odd"
    ) as error:
        told(config(**budget, dense_bytes=849))
    assert error.value.smallest_bytes == 10_001
    told(config(dense="bf16", memory_budget=10_000, dense_bytes=1), DenseForms())
    assert "--dense bf16" in error.value.diagnostics()


def test_a_refused_form_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    told(config(dense="compressed"), DenseForms(Counter(bf16=4), Counter(bf16=80), left=Counter({"odd": 4})))
    said = capsys.readouterr().out
    assert "dense_weights" in said and "warning" in said and "4 x odd" in said
