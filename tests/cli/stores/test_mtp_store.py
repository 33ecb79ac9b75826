"""`zipmoe pack --with-mtp`, and what the other verbs tell of the layers for multi-token prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.measurement_time import shared_cache
from tests.cli.run import zipmoe
from zipmoe.model.probe.result import ComputePath, ProbeResult

__all__ = ["shared_cache"]


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither probes the model nor loads the tokenizer, which other tests do."""

    class Known:
        def __init__(self, path: Path) -> None:
            pass

        def result(self) -> ProbeResult:
            return ProbeResult(ComputePath.SHARED, "", "")

    monkeypatch.setattr("zipmoe.calibration.saved_probe.ProbeRun", Known)
    monkeypatch.setattr("zipmoe.cli.stores.pack.tokenizer_warnings", lambda store: [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "checkpoint"
    assert zipmoe("synth", "glm4_moe", path, "--mtp").exit_code == 0
    return path


def test_the_layers_are_packed_on_request_and_told(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    packed = zipmoe("pack", checkpoint, store, "--with-mtp", "--json")
    assert (packed.json["mtp_layers"], packed.json["layers"], packed.json["experts"]) == (1, 3, 24)
    assert not [each for each in packed.json["warnings"] if "multi-token" in each]
    assert zipmoe("pack", checkpoint, store, "--with-mtp", "--json").json["already_packed"]
    described = zipmoe("inspect", store, "--json").json
    assert (described["mtp_layers"], described["expert_count"]) == (1, 24)
    assert described["layers"][-1]["module"] == "mtp.layers.0.mtp_block.mlp.experts"
    assert "1 layers that draft tokens" in zipmoe("inspect", store).stdout
    assert zipmoe("verify", store, "--against", checkpoint, "--json").json["intact"]


def test_without_the_request_pack_says_that_the_layers_were_left_out(checkpoint: Path, tmp_path: Path) -> None:
    packed = zipmoe("pack", checkpoint, tmp_path / "store", "--json")
    assert (packed.json["mtp_layers"], packed.json["layers"]) == (0, 2)
    (warning,) = [each for each in packed.json["warnings"] if "multi-token" in each]
    assert "42 tensors" in warning and "--with-mtp" in warning
    assert zipmoe("verify", tmp_path / "store", "--against", checkpoint, "--json").json["intact"]
    refused = zipmoe("pack", checkpoint, tmp_path / "store", "--with-mtp", "--json")
    assert refused.error["class"] == "InvalidRequest"  # another store is there
