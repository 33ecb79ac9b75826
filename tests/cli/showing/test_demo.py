"""What `zipmoe demo` says of an outcome; tests/integration runs the whole of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.run import zipmoe
from zipmoe.cli.showing import demo as module
from zipmoe.cli.showing.demo_outcome import DemoOutcome
from zipmoe.cli.stores.pack import PackRun
from zipmoe.client import Completion, FinishReason, Token, Usage
from zipmoe.errors import CorruptData
from zipmoe.model.probe.result import ComputePath, ProbeResult

METRICS = {
    "zipmoe_expert_hits_total": 40.0,
    "zipmoe_expert_misses_total": 4.0,
    "zipmoe_store_read_bytes_total": 2048.0,
    "zipmoe_store_reads_total": 4.0,
    "zipmoe_decoder_recovered_bytes_total": 4096.0,
    "zipmoe_time_to_first_token_seconds_sum": 0.5,
    "zipmoe_time_to_first_token_seconds_count": 1.0,
}
ANSWER = Completion(
    "id", "ab", (Token(1, "a"), Token(2, "b")), (), FinishReason.LENGTH, Usage(3, 2, 0.5, 0.6, 40, 4, 2048, 0)
)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place where nothing is really made or served."""
    report = SimpleNamespace(store_bytes=2048, source_bytes=4096, manifest=None)
    probe = ProbeResult(ComputePath.SHARED)
    monkeypatch.setattr(module, "run_pack", lambda *arguments, **options: PackRun(report, 1.0, {}, probe))
    monkeypatch.setattr(module, "_built_in", lambda work, quiet: work)
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, stock_ids: list[int]) -> None:
    outcome = DemoOutcome(ANSWER, [7, 8, 9], stock_ids, 1.5, METRICS)
    monkeypatch.setattr(module, "_serve", lambda *arguments: outcome)


def test_equal_tokens_pass(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    serve(monkeypatch, [1, 2])
    ran = zipmoe("demo", "--directory", work)
    assert ran.exit_code == 0
    assert "PASS: all 2 token ids are those of stock transformers" in ran.stdout
    assert "500.0 ms" in ran.stdout
    assert "between tokens  none" in ran.stdout


@pytest.mark.parametrize("stock_ids", [[1, 3], [1], [1, 2, 3], []])
def test_any_difference_fails(stock_ids: list[int], monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    serve(monkeypatch, stock_ids)
    ran = zipmoe("demo", "--directory", work)
    assert ran.exit_code == 1
    assert "PASS" not in ran.stdout
    assert f"  zipmoe [1, 2]\n  stock  {stock_ids}\n" in ran.stdout


def test_json_has_both_sides(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    serve(monkeypatch, [1, 3])
    ran = zipmoe("demo", "--directory", work, "--json")
    assert ran.exit_code == 1
    assert (ran.json["passed"], ran.json["token_ids"], ran.json["stock_token_ids"]) == (False, [1, 2], [1, 3])
    assert ran.json["metrics"] == METRICS


def test_a_failure_leaves_no_temporary_directory(monkeypatch: pytest.MonkeyPatch, work: Path, tmp_path: Path) -> None:
    def fail(*arguments: Any) -> None:
        raise CorruptData("broken")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(module, "_serve", fail)
    ran = zipmoe("demo")
    assert (ran.exit_code, ran.stderr.splitlines()[-2]) == (1, "error: broken")
    assert not any(tmp_path.iterdir())


def test_a_source_tree_serves_the_trained_model(tmp_path: Path) -> None:
    checkpoint = module._built_in(tmp_path, quiet=False)
    assert checkpoint == Path(__file__).parents[3] / "demo" / "model"
    assert (checkpoint / "tokenizer.json").is_file()


def test_an_installation_without_it_says_that_weights_are_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "_MODEL", tmp_path / "nowhere")
    monkeypatch.setattr(module, "_say", lambda text, quiet: said.append(text))
    assert module._built_in(tmp_path, quiet=False) == tmp_path / "checkpoint"
    assert any("random weights" in each for each in said)
