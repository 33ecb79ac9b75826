"""The modules of transformers name their experts so that model types can be told by reading them."""

from __future__ import annotations

import pytest
import transformers
from transformers import CONFIG_MAPPING

from zipmoe.model.families.twin import tiny_config
from zipmoe.model.stock.experts_module import expert_children, stacked_matrices
from zipmoe.model.stock.model_class import construct
from zipmoe.model.stock.model_types import auto_class_of, moe_model_types

#: A module of its own name, a module of another name, experts in the text part alone, and experts in a module dict.
FORMS = ("mixtral", "qwen3_5_moe_text", "kimi_k25", "nllb-moe")
DENSE = ("llama", "gemma2", "qwen3", "qwen3_5", "t5")


@pytest.mark.parametrize("model_type", FORMS)
def test_a_listed_type_makes_a_model_with_experts(model_type: str) -> None:
    assert model_type in moe_model_types()
    modules = construct(tiny_config(model_type)).model.modules()
    assert any(stacked_matrices(module) or expert_children(module) for module in modules)


@pytest.mark.parametrize("model_type", DENSE)
def test_a_dense_type_is_known_to_transformers_and_not_listed(model_type: str) -> None:
    assert model_type in CONFIG_MAPPING
    assert model_type not in moe_model_types()


def test_the_types_are_those_of_transformers_5_23() -> None:
    known = moe_model_types()
    assert len(known) == 84 and list(known) == sorted(known)
    assert set(known) <= set(CONFIG_MAPPING)
    assert "openai_privacy_filter" not in known, "it has experts, but generates no text"


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("mixtral", "AutoModelForCausalLM"),
        ("switch_transformers", "AutoModelForSeq2SeqLM"),
        ("qwen3_vl_moe", "AutoModelForImageTextToText"),
        ("nothing", None),
    ],
)
def test_auto_classes_are_exported_by_transformers(model_type: str, name: str | None) -> None:
    assert auto_class_of(model_type) == name
    assert name is None or hasattr(transformers, name)
