"""Every model type that is computed over pages is recorded, layer by layer: a silent fallback fails here."""

from __future__ import annotations

from pathlib import Path

import pytest

from zipmoe.errors import UnsupportedModel
from zipmoe.model.build.build import build_from_checkpoint
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.provider import CheckpointProvider
from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.linear.native_linear import Linears
from zipmoe.model.passes.ragged import RaggedModel
from zipmoe.model.stock.model_types import moe_model_types

ORDINARY = ("afmoe", "cohere2_moe", "phimoe", "laguna", "minimax_m3_vl_text")
"""Gates in fp32, layers that differ, norms of other kinds; `test_row_program` has the families of the tiny models."""

TORCH_OPERATIONS = 60
"""Most operations that torch computes in a replayed pass of three layers; phimoe's gate has the most."""


@pytest.mark.parametrize(
    "model_type", [*ORDINARY, *(pytest.param(each, marks=pytest.mark.extra) for each in moe_model_types())]
)
def test_every_paged_model_type_is_recorded_with_all_its_layers(model_type: str, tmp_path: Path) -> None:
    try:
        write_checkpoint(tiny_config(model_type), tmp_path, 1)
        found = catalogue(tmp_path)
    except Exception as error:  # a type without a tiny model: `test_families` says which
        pytest.skip(f"{type(error).__name__}: {error}")
    linears = Linears()
    provider = CheckpointProvider(found.layers)
    try:
        model = RaggedModel(build_from_checkpoint(tmp_path, found, provider, linears), linears, 8)
    except UnsupportedModel as error:
        pytest.skip(error.message)
    finally:
        provider.close()
    report = model.record_row()
    if model.pool.layout.latent:
        assert report.reason == "cached latents are expanded anew for every row"
        return
    assert report.recorded_layers == report.layers == model.layer_count, report.why_eager
    assert report.torch_operations <= TORCH_OPERATIONS, report.why_not_native
