"""Text reaches no tower of a multimodal model, so a model without towers computes the same bits."""

from __future__ import annotations

import pytest
import torch

from zipmoe.model.families.random_weights import random_model
from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.model_class import construct, text_model_class
from zipmoe.model.stock.towers import leave_out_towers

TOWERS = {
    "glm4v_moe": ["model.visual"],
    "qwen3_vl_moe": ["model.visual"],
    "aria": ["model.vision_tower", "model.multi_modal_projector"],
}


@pytest.mark.parametrize("model_type", TOWERS)
def test_text_is_computed_with_the_same_bits_without_towers(model_type: str) -> None:
    model = random_model(*text_model_class(tiny_config(model_type)), seed=0)
    ids = torch.randint(400, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
        assert list(leave_out_towers(model)) == TOWERS[model_type]
        assert torch.equal(model(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("model_type", TOWERS)
def test_the_names_of_a_tower_are_those_of_the_whole_state_dict(model_type: str) -> None:
    config = tiny_config(model_type)
    model_class, config = text_model_class(config)
    with torch.device("meta"):
        whole = set(model_class(config).state_dict())
    built = construct(config)
    left_out = {name for tensors in built.towers.values() for name in tensors}
    assert left_out and left_out == whole - set(built.model.state_dict())
    assert built.model.get_output_embeddings() is not None and built.model.get_decoder() is not None


def test_a_model_of_text_alone_has_no_towers() -> None:
    assert construct(tiny_config("qwen3_moe")).towers == {}
    assert construct(tiny_config("switch_transformers")).towers == {}
