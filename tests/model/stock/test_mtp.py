"""What we rely on in stock's layers for multi-token prediction (MTP), and how we construct them."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, PreTrainedModel

from zipmoe.errors import UnsupportedModel
from zipmoe.model.stock.model_class import construct
from zipmoe.model.stock.mtp import construct_mtp, move_behind, mtp_conversions, mtp_layer_count, share_modules
from zipmoe.model.synth.configs import configuration


def model_of(family: str, **values: object) -> PreTrainedModel:
    settings = {"pad_token_id": None, **values}
    fields = configuration(family, true_widths=False, layers=None, vocab=None, overrides=settings)
    return construct(AutoConfig.for_model(**fields)).model


@pytest.mark.parametrize(("family", "count"), [("deepseek_v3", 1), ("glm4_moe", 1), ("qwen2_moe", 0), ("mixtral", 0)])
def test_configurations_state_their_layers(family: str, count: int) -> None:
    assert mtp_layer_count(model_of(family).config) == count


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_the_layers_are_on_the_meta_device_without_the_modules_of_the_model(family: str) -> None:
    model = model_of(family, num_nextn_predict_layers=2)
    before = set(model.state_dict())
    mtp = construct_mtp(model)
    state = mtp.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert {name.split(".")[1] for name in state} == {"0", "1"}
    assert {name.split(".")[0] for name in state} == {"layers"}
    share_modules(mtp, model)
    assert mtp.get_submodule("embed_tokens") is model.get_input_embeddings()
    assert mtp.get_submodule("shared_head") is model.get_output_embeddings()
    assert set(model.state_dict()) == before


def test_their_attention_uses_the_cache_behind_the_layers_of_the_model() -> None:
    model = model_of("glm4_moe", num_nextn_predict_layers=2)
    mtp = construct_mtp(model)
    move_behind(mtp, model)
    assert [module.layer_idx for module in mtp.modules() if hasattr(module, "layer_idx")] == [3, 4]


def test_the_keys_of_a_checkpoint_count_on_from_the_last_layer() -> None:
    model = model_of("deepseek_v3")
    renamings = list(mtp_conversions(construct_mtp(model), model))
    assert "layers.3." in [pattern for entry in renamings for pattern in entry.source_patterns]


def test_a_configuration_that_stock_refuses_is_refused() -> None:
    model = model_of("glm4_moe")
    model.config.layer_types = ["full_attention"] * 3
    with pytest.raises(UnsupportedModel, match="constructs no MTP layers for this glm4_moe configuration"):
        construct_mtp(model)
