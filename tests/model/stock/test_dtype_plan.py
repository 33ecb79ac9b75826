"""Parameters have the dtypes that `from_pretrained(dtype=torch.bfloat16)` gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zipmoe.model.families.twin import tiny_config, write_checkpoint
from zipmoe.model.stock.dtype_plan import DtypePlan
from zipmoe.model.stock.model_class import construct, whole_class

#: The ends of names that stay in fp32.
KEPT = {
    "qwen3_moe": set(),
    "deepseek_v3": {"e_score_correction_bias"},
    "flint": {"gate.weight", "sinks"},
    "ernie4_5_moe": {"gate.weight", "e_score_correction_bias"},
    "bailing_hybrid": {"e_score_correction_bias", "A_log", "dt_bias", "conv1d.weight"},
}


@pytest.mark.parametrize("model_type", KEPT)
def test_the_dtypes_are_those_of_a_loaded_model(model_type: str, tmp_path: Path) -> None:
    config = tiny_config(model_type)
    write_checkpoint(config, tmp_path, seed=0)
    loaded = whole_class(config).from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    model = construct(config).model
    plan = DtypePlan(model)
    found = {name: plan.dtype_of(name) or tensor.dtype for name, tensor in model.state_dict().items()}
    assert found == {name: tensor.dtype for name, tensor in loaded.items()}
    planned = {name for name in found if plan.dtype_of(name) is not None}
    assert all(found[name] is torch.float32 for name in planned)
    assert {end for end in KEPT[model_type] if any(name.endswith(end) for name in planned)} == KEPT[model_type]
    assert bool(planned) == bool(KEPT[model_type])
