"""The probe of a configuration, as a process, with its kept result; and the refusals of `pack` that come from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zipmoe.calibration.saved_probe import ProbeRun
from zipmoe.cli.__main__ import app
from zipmoe.errors import InternalError, NotFound, UnsupportedModel
from zipmoe.model.experts.ffn import DirectFfn
from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.probe import comparison
from zipmoe.model.probe.comparison import probe_checkpoint
from zipmoe.model.probe.result import ComputePath, ProbeResult


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(tiny_config("qwen3_moe"), folder, seed=0)
    return folder


def test_a_probe_is_a_process_whose_result_is_kept(checkpoint: Path, own_cache: Path) -> None:
    run = ProbeRun(checkpoint, threads=1)
    assert run.result() == ProbeResult(ComputePath.SHARED)
    (kept,) = (own_cache / "probe").iterdir()
    kept.write_text(json.dumps(ProbeResult(ComputePath.JOINED, "kept").to_plain()))
    assert ProbeRun(checkpoint, threads=1).result() == ProbeResult(ComputePath.JOINED, "kept")
    kept.write_text("damaged")
    again = ProbeRun(checkpoint, threads=1)
    with pytest.raises(InternalError, match="has not ended within"):
        again.result(timeout_s=0.01)


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        ProbeRun(tmp_path)


def test_pack_refuses_before_a_byte_is_written_what_cannot_be_served(tmp_path: Path, own_cache: Path) -> None:
    source, store = tmp_path / "llama4", tmp_path / "store"
    source.mkdir()
    write_checkpoint(tiny_config("llama4_text"), source, seed=0)
    ended = CliRunner().invoke(app, ["pack", str(source), str(store)])
    assert ended.exit_code == 2
    assert "experts are called with (hidden_states)" in ended.output
    assert not store.exists()


def test_a_path_with_other_bits_is_not_taken(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = comparison._shared

    def wrong(*arguments: object) -> comparison.Logits:
        logits = real(*arguments)  # type: ignore[arg-type]
        logits[1][3] = logits[1][3] + 1
        return logits

    monkeypatch.setattr(comparison, "_shared", wrong)
    found = probe_checkpoint(checkpoint)
    assert found.path is ComputePath.JOINED
    assert found.reason == "1 of 12 logits of request 2 differ"


def test_a_model_with_other_bits_than_stock_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DirectFfn.__call__
    monkeypatch.setattr(DirectFfn, "__call__", lambda self, *arguments: real(self, *arguments) * 1.01)
    monkeypatch.setattr("zipmoe.model.experts.proof._Reference.differs", lambda self, ffn: None)
    with pytest.raises(UnsupportedModel, match="one request alone has other bits than stock"):
        probe_checkpoint(checkpoint)
