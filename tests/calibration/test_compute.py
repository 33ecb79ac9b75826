from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.calibration.measurement_time import TINY
from tests.cli.run import zipmoe
from tests.services.tiny_store import TinyStore
from zipmoe.arena.headroom import MemoryHeadroom
from zipmoe.calibration import compute
from zipmoe.calibration.compute import RandomExperts, measure_model
from zipmoe.model.build.build import build_from_store
from zipmoe.model.build.dense_forms import form_of_machine
from zipmoe.model.experts.device import create_placement
from zipmoe.model.linear.native_linear import Linears
from zipmoe.store.format.manifest import read_manifest

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["qwen2_moe", "switch_transformers", "gpt_oss"])
def test_a_model_is_measured_with_lent_experts(family: str, tmp_path: Path) -> None:
    """Packed, separate, and transposed with biases: the three forms of experts."""
    assert zipmoe("synth", family, tmp_path / "m", "--layers", "2", "--experts", "4").exit_code == 0
    assert zipmoe("pack", tmp_path / "m", tmp_path / "s").exit_code == 0
    speed = measure_model(tmp_path / "s", read_manifest(tmp_path / "s"), CPU, TINY)
    assert speed.why_no_dense == ""
    assert speed.dense is not None and speed.dense.first_s > 0
    assert speed.full_ffn.first_s > 0
    assert speed.copy_bytes_per_s is None


def test_compressed_dense_weights_are_measured_beside_bf16(tmp_path: Path) -> None:
    assert zipmoe("synth", "qwen2_moe", tmp_path / "m", "--layers=2", "--experts=4", "--hidden=256").exit_code == 0
    assert zipmoe("pack", tmp_path / "m", tmp_path / "s").exit_code == 0
    manifest = read_manifest(tmp_path / "s")
    compressed = measure_model(tmp_path / "s", manifest, CPU, TINY).compressed
    assert compressed is not None
    linears = Linears()
    form = form_of_machine(linears, 256, 256)
    assert compressed.form == ("" if form is None else form.name)
    provider = RandomExperts(manifest)
    built = build_from_store(tmp_path / "s", manifest, provider, create_placement(CPU, 1), linears, compress_dense=True)
    assert compressed.saved_bytes == built.dense_forms.saved_bytes
    assert compressed.left == built.dense_forms.why_left


def test_without_a_model_the_bare_matrices_are_measured(store: TinyStore) -> None:
    speed = measure_model(store.path, store.manifest, CPU, TINY)
    assert speed.full_ffn.first_s > 0
    assert speed.dense is None and "config.json" in speed.why_no_dense


def test_a_model_that_does_not_fit_is_not_built(store: TinyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.path / "config.json").write_text("{}")
    monkeypatch.setattr(compute, "memory_headroom", lambda: MemoryHeadroom(1 << 34, 1 << 20, None, None))
    speed = measure_model(store.path, store.manifest, CPU, TINY)
    assert speed.dense is None and "1048576 are free" in speed.why_no_dense


@pytest.mark.gpu
def test_on_a_gpu_the_copy_is_measured_too(store: TinyStore) -> None:
    speed = measure_model(store.path, store.manifest, torch.device("cuda", 0), TINY)
    assert speed.copy_bytes_per_s is not None and speed.copy_bytes_per_s > 0
