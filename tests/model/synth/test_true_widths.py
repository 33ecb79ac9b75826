"""At true widths nothing is written here: shapes are compared with what is known of the real models."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from zipmoe.model.checkpoint.expert_modules import find_experts
from zipmoe.model.checkpoint.skeleton import Skeleton, skeleton_of
from zipmoe.model.synth.configs import FAMILIES, configuration
from zipmoe.model.synth.inventory import list_tensors
from zipmoe.model.synth.tokenizer_files import special_ids

# Layers with experts, experts of a layer, rows and columns of the first and the last matrix; parameters in billions as
# the models' cards or names give them.
KNOWN = {
    "qwen2_moe": (24, 60, (2816, 2048), (2048, 1408), 14.3),
    "deepseek_v2": (26, 64, (2816, 2048), (2048, 1408), 15.7),
    "switch_transformers": (24, 128, (4096, 1024), (1024, 4096), 26.4),
    "qwen3_moe": (48, 128, (1536, 2048), (2048, 768), 30.5),
    "olmoe": (16, 64, (2048, 2048), (2048, 1024), 6.92),
    "mixtral": (32, 8, (28672, 4096), (4096, 14336), 46.7),
    "gpt_oss": (24, 32, (2880, 5760), (2880, 2880), 20.9),
    "phimoe": (32, 16, (12800, 4096), (4096, 6400), 41.9),
    "glm4_moe": (45, 128, (2816, 4096), (4096, 1408), 106.9),
    "deepseek_v3": (58, 256, (4096, 7168), (7168, 2048), 671.0),
    "granitemoe": (24, 32, (1024, 1024), (1024, 512), 1.33),
}


def true_skeleton(family: str, **options: int) -> Skeleton:
    sizes = {"layers": None, "vocab": None, **options}
    config = configuration(family, true_widths=True, overrides=special_ids(family), **sizes)
    return skeleton_of(family, AutoConfig.for_model(**config), "a test")


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_size_are_those_of_the_real_model(family: str) -> None:
    layers, experts, first, last, billions = KNOWN[family]
    skeleton = true_skeleton(family)
    modules = find_experts(skeleton)
    assert len(modules) == layers
    assert {len(module.experts) for module in modules} == {experts}
    specs = [matrix.spec for matrix in modules[0].experts[0]]
    assert [(spec.rows, spec.cols) for spec in (specs[0], specs[-1])] == [first, last]
    parameters = sum(tensor.weight_count for tensor in list_tensors(skeleton, packed=True))
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_setting_of_the_measurements_has_the_known_size() -> None:
    tensors = list_tensors(true_skeleton("qwen2_moe", layers=8, vocab=32000), packed=False)
    assert sum(tensor.nbytes for tensor in tensors) == pytest.approx(9.39e9, rel=1e-3)
    assert len(tensors) == 8 * (60 * 3 + 14) + 3
    experts = [tensor for tensor in tensors if ".mlp.experts." in tensor.name]
    assert sum(tensor.nbytes for tensor in experts) == 480 * 3 * 1408 * 2048 * 2
