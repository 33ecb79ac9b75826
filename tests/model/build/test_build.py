from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tests.model.conftest import TwinOf
from tests.model.passes.test_sequence import our_logits, prompt
from tests.model.store_provider import StoreProvider
from tests.model.tiny import FAMILIES, VOCABULARY
from zipmoe.codec.registry import create_codec
from zipmoe.errors import CorruptData, NotFound, UnsupportedModel
from zipmoe.model.build import build
from zipmoe.model.build.build import BuiltModel, build_from_checkpoint, build_from_store, build_model
from zipmoe.model.checkpoint.catalogue import catalogue
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.experts.provider import CheckpointProvider
from zipmoe.model.passes.sequence import Sequence
from zipmoe.store.format.layout import ExpertSpec, TensorSpec
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.writer import PackOptions, pack_store


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_store_answers_as_stock_bit_for_bit(family: str, twin_of: TwinOf, tmp_path: Path) -> None:
    twin = twin_of(family)
    store = tmp_path / "store"
    pack_store(catalogue(twin.path), store, PackOptions(codec=create_codec("zstd"), workers=1))
    manifest = read_manifest(store)
    provider = StoreProvider(store, manifest)
    built = build_from_store(store, manifest, provider, HostPlacement())
    shutil.rmtree(store)  # everything dense is in memory, and the expert files are open
    token_ids, answer = prompt(17), prompt(5, seed=4)
    expected = list(our_logits(twin, token_ids, answer))  # equal to stock by test_sequence
    assert_same_logits(built, token_ids, answer, expected)
    provider.close()


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "switch_transformers", "gpt_oss"])
def test_a_checkpoint_answers_without_being_packed(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    source = catalogue(twin.path)
    provider = CheckpointProvider(source.layers)
    built = build_from_checkpoint(twin.path, source, provider)
    expected = list(our_logits(twin, prompt(9), [4]))
    assert_same_logits(built, prompt(9), [4], expected)
    provider.close()


def assert_same_logits(
    built: BuiltModel, token_ids: list[int], answer: list[int], expected: list[torch.Tensor]
) -> None:
    sequence = Sequence(built)
    assert torch.equal(sequence.prefill(token_ids).logits.float(), expected[0])
    for token_id, logits in zip(answer, expected[1:], strict=True):
        assert torch.equal(sequence.step(token_id).float(), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dense_tensor_is_stocks_in_value_and_dtype(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    Sequence(twin.built).prefill([5])  # Switch's routers become fp32 at their first forward, in stock too
    twin.stock.generate(torch.tensor([[5]]), attention_mask=torch.ones(1, 1, dtype=torch.long), max_new_tokens=1)
    ours = dict(twin.built.model.named_parameters()) | dict(twin.built.model.named_buffers())
    stock = dict(twin.stock.named_parameters()) | dict(twin.stock.named_buffers())
    assert set(ours) == set(stock) - routed_names(twin.layers)
    for name, tensor in ours.items():
        assert tensor.dtype == stock[name].dtype, name
        assert torch.equal(tensor, stock[name]), name
        assert tensor.requires_grad == stock[name].requires_grad, name  # decides how torch computes a linear
    assert not twin.built.model.training


def routed_names(layers: list[object]) -> set[str]:
    names = set()
    for layer in layers:
        for tensor in layer.spec.tensors:
            if "." in tensor.name:
                names |= {f"{layer.module}.expert_{i}.{tensor.name}" for i in range(layer.expert_count)}
            else:
                names.add(f"{layer.module}.{tensor.name}")
    return names


def test_no_expert_is_in_the_models_memory(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    stock_bytes = sum(parameter.nbytes for parameter in twin.stock.parameters())
    expert_bytes = sum(layer.expert_count * layer.spec.weight_bytes for layer in twin.layers)
    own_bytes = sum(parameter.nbytes for parameter in twin.built.model.parameters())
    assert own_bytes == stock_bytes - expert_bytes
    assert own_bytes <= twin.built.dense.nbytes < own_bytes + 4096
    assert twin.built.dense.locked == (twin.built.dense.lock_error == "")


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("granitemoe", ["lm_head.weight", "model.embed_tokens.weight"]),
        ("switch_transformers", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
    ],
)
def test_tied_weights_are_one_tensor_however_often_they_are_given(
    family: str, tied: list[str], twin_of: TwinOf
) -> None:
    twin = twin_of(family)
    for present in tied:
        dense = {name: tensor for name, tensor in twin.dense.items() if name not in tied or name == present}
        built = build_model(twin.path, twin.layers, dense, twin.provider, HostPlacement())
        assert len({built.model.get_parameter(name).data_ptr() for name in tied}) == 1
        assert torch.equal(built.model.get_parameter(tied[0]), twin.stock.get_parameter(tied[0]))


def test_missing_weights_are_named(twin_of: TwinOf) -> None:
    twin = twin_of("deepseek_v2")
    absent = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    dense = {name: tensor for name, tensor in twin.dense.items() if name not in absent}
    with pytest.raises(NotFound) as refusal:
        build_model(twin.path, twin.layers, dense, twin.provider, HostPlacement())
    assert refusal.value.message == f"2 dense weights of DeepseekV2ForCausalLM are missing, such as {', '.join(absent)}"


def test_a_weight_of_another_shape_is_refused(twin_of: TwinOf) -> None:
    twin = twin_of("deepseek_v2")
    dense = {**twin.dense, "model.norm.weight": torch.ones(65)}
    with pytest.raises(CorruptData, match=r"model\.norm\.weight has shape \(65,\), the model needs \(64,\)"):
        build_model(twin.path, twin.layers, dense, twin.provider, HostPlacement())


def test_layers_that_are_not_the_models_are_refused(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    elsewhere = [replace(twin.layers[0], module="model.layers.9.mlp.experts"), *twin.layers[1:]]
    with pytest.raises(UnsupportedModel, match=r"Qwen2MoeForCausalLM has no module model\.layers\.9\.mlp\.experts"):
        build_model(twin.path, elsewhere, twin.dense, twin.provider, HostPlacement())
    narrow = [replace(layer, spec=ExpertSpec((TensorSpec("gate_up_proj", 96, 32),))) for layer in twin.layers]
    with pytest.raises(UnsupportedModel, match="the store's experts have"):
        build_model(twin.path, narrow, twin.dense, twin.provider, HostPlacement())
    with pytest.raises(NotFound, match=r"2 dense weights .* such as model\.layers\.2\.mlp\.experts\.down_proj"):
        build_model(twin.path, twin.layers[:2], twin.dense, twin.provider, HostPlacement())


@pytest.mark.parametrize("config", ["", "{}", '{"model_type": "no_such_model"}', '{"model_type": "bert"}'])
def test_a_configuration_that_is_none_is_refused(config: str, twin_of: TwinOf, tmp_path: Path) -> None:
    twin = twin_of("qwen2_moe")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnsupportedModel, match=r"transformers refuses the configuration of|has no module"):
        build_model(tmp_path, twin.layers, twin.dense, twin.provider, HostPlacement())


def test_generation_defaults_are_the_checkpoints_own(twin_of: TwinOf, tmp_path: Path) -> None:
    twin = twin_of("olmoe")
    assert twin.built.generation_config.to_dict() == twin.stock.generation_config.to_dict()
    shutil.copy(twin.path / "config.json", tmp_path)
    built = build_model(tmp_path, twin.layers, twin.dense, twin.provider, HostPlacement())
    assert built.generation_config.eos_token_id == 2
    GenerationConfig(eos_token_id=[7, 9], do_sample=True, top_k=4).save_pretrained(tmp_path)
    built = build_model(tmp_path, twin.layers, twin.dense, twin.provider, HostPlacement())
    assert built.generation_config.eos_token_id == [7, 9]
    assert built.generation_config.top_k == 4
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"generation_config\.json in .* cannot be read"):
        build_model(tmp_path, twin.layers, twin.dense, twin.provider, HostPlacement())


def test_the_context_is_what_configuration_or_tokenizer_say(twin_of: TwinOf, tmp_path: Path) -> None:
    assert twin_of("olmoe").built.context_tokens == 128
    twin = twin_of("switch_transformers")
    assert (twin.built.context_tokens, twin.built.vocabulary_size) == (512, VOCABULARY)
    shutil.copy(twin.path / "config.json", tmp_path)
    for stated, expected in ((333, 333), (10**30, 512), ("x", 512), (None, 512)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": stated}))
        built = build_model(tmp_path, twin.layers, twin.dense, twin.provider, HostPlacement())
        assert built.context_tokens == expected


def test_a_model_that_attends_in_another_way_is_still_built_eager(twin_of: TwinOf) -> None:
    built = twin_of("qwen3_moe").built
    assert built.config._attn_implementation == "eager"
    assert built.config._experts_implementation == "eager"
    assert built.config.dtype == torch.bfloat16


def test_stocks_initialisation_of_a_module_with_a_buffer_leaves_the_weights_of_the_store(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in gemma4, whose embedding owns a buffer that no checkpoint holds, and whose `_init_weights` draws weights."""
    twin = twin_of("qwen2_moe")
    embedding = torch.nn.Embedding
    plain = embedding.__init__

    def scaled(self: torch.nn.Embedding, *arguments: object, **settings: object) -> None:
        plain(self, *arguments, **settings)  # type: ignore[arg-type]
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    monkeypatch.setattr(embedding, "__init__", scaled)
    stock_fill = type(twin.stock)._init_weights

    def fill(self: torch.nn.Module, module: torch.nn.Module) -> None:
        stock_fill(self, module)
        if isinstance(module, embedding):
            module.scale.fill_(2.0)

    monkeypatch.setattr(type(twin.stock), "_init_weights", fill)
    built = build_model(twin.path, twin.layers, twin.dense, twin.provider, HostPlacement())
    (name,) = [name for name in twin.dense if "embed_tokens" in name]
    assert torch.equal(built.model.get_parameter(name), twin.stock.get_parameter(name))
    assert float(built.model.get_input_embeddings().scale) == 2.0


def test_a_weight_that_changes_while_the_model_is_built_is_found(
    twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of("qwen2_moe")
    dense = {name: tensor.clone() for name, tensor in twin.dense.items()}
    check = build.check_complete

    def change(model: torch.nn.Module) -> None:
        check(model)
        with torch.no_grad():
            model.get_parameter("model.norm.weight")[3] *= 2

    monkeypatch.setattr(build, "check_complete", change)
    with pytest.raises(UnsupportedModel, match=r"changes 1 weights of the store, such as model\.norm\.weight"):
        build_model(twin.path, twin.layers, dense, twin.provider, HostPlacement())
