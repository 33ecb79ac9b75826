from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.planning.costs import make_costs
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.calibration.plan_request import decode_layers, plan_request, uniform_popularity
from zipmoe.calibration.saved_popularity import load_popularity, popularity_of_trace, popularity_path, save_popularity
from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.planning.popularity import Popularity


def line(layer: int, experts: list[int], phase: str = "decode", step: int = 0) -> str:
    return json.dumps({"step": step, "layer": layer, "phase": phase, "experts": experts, "tokens": 1})


def test_popularity_is_kept_between_runs(store: TinyStore) -> None:
    assert load_popularity(store.manifest) is None
    popularity = uniform_popularity(store.manifest)
    popularity.used(1, [2])
    assert save_popularity(store.manifest, popularity) == popularity_path(store.manifest.digest)
    loaded = load_popularity(store.manifest)
    assert loaded is not None and loaded.inclusion(1, 1).argmax() == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps(Popularity([3]).to_plain())])
def test_what_is_not_of_this_store_counts_as_nothing(store: TinyStore, content: str) -> None:
    path = save_popularity(store.manifest, uniform_popularity(store.manifest))
    path.write_text(content)
    assert load_popularity(store.manifest) is None


def test_a_trace_teaches_what_decode_steps_use(store: TinyStore, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join([line(0, [0, 1, 2, 3], "prefill"), line(0, [3], step=1), line(1, [1], step=1)]) + "\n")
    popularity = popularity_of_trace(trace, store.manifest)
    assert [popularity.inclusion(layer, 1).argmax() for layer in (0, 1)] == [3, 1]


@pytest.mark.parametrize(
    "text", ["nonsense", "{}", line(0, [99]), line(7, [0]), '{"layer": 0, "phase": 1, "experts": 2}']
)
def test_a_line_that_is_no_entry_is_refused(store: TinyStore, tmp_path: Path, text: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(text)
    with pytest.raises(InvalidRequest):
        popularity_of_trace(trace, store.manifest)


def test_a_trace_that_cannot_be_read_is_named(store: TinyStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read the trace"):
        popularity_of_trace(tmp_path / "none.jsonl", store.manifest)


def test_a_request_has_the_stores_sizes(store: TinyStore) -> None:
    request = plan_request(store.manifest, {"num_experts_per_tok": 2}, make_costs(), uniform_popularity(store.manifest))
    records = [store.manifest.record(key) for key in store.experts]
    assert request.slot_bytes.e == max(record.e_bytes for record in records)
    assert request.slot_bytes.e + request.slot_bytes.sm >= store.manifest.max_record_bytes
    assert request.slot_bytes.tensor == store.manifest.max_tensor_bytes
    assert request.expert.tensor == 2 * (64 * 40 + 40 * 32)
    assert [layer.sum() for layer in request.inclusion] == pytest.approx([2, 2])


def test_layers_of_an_encoder_are_not_passed_by_every_token(tmp_path: Path) -> None:
    manifest = make_store(tmp_path).manifest
    assert decode_layers(manifest) == [0, 1]
