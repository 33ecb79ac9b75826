"""Refusals of models: quantised ones, and those that ZipMoE does not compute."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)
from transformers.utils.import_utils import is_accelerate_available

from tests.cli.run import Ran
from tests.model.hub import edit_config, load_stock
from tests.model.tiny import save_checkpoint
from tests.properties.next_steps.bench import Bench, Refused, Steps, performs
from zipmoe.model.families.twin import tiny_config, write_checkpoint

TYPE = "zipmoe/model/checkpoint/model_type.py"
CLASS = "zipmoe/model/stock/model_class.py"
ITSELF = "serve this model with transformers itself"


def _run_code(refused: Refused, source: Path, target: Path) -> None:
    """Runs the `python -c` of a next step, which reads SRC and writes a directory in capitals."""
    match = re.search(r'`python -c "(.*?)"`, copy the tokenizer files of SRC to (\w+), pack \2$', refused.next_step)
    assert match is not None, refused.next_step
    code = match[1].replace("'SRC'", repr(str(source))).replace(f"'{match[2]}'", repr(str(target)))
    exec(code, {})
    for file in source.glob("tokenizer*"):
        shutil.copy(file, target)


def _quantised(path: Path, **quantisation: Any) -> None:
    edit_config(path, quantization_config=quantisation)


@performs(TYPE, "the checkpoint is quantised")
def mxfp4(bench: Bench) -> Steps:
    path = bench.folder / "checkpoint"
    save_checkpoint("gpt_oss", path, hidden_size=64, intermediate_size=64, num_hidden_layers=2)
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensor.shape
            blocks = (experts, outputs, inputs // 32)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*blocks, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(120, 124, blocks, dtype=torch.uint8)
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    _quantised(path, quant_method="mxfp4")
    refused = yield bench.pack(path)
    assert "mxfp4" in refused.message
    _run_code(refused, path, bench.folder / "bf16")
    yield bench.pack(bench.folder / "bf16")


@performs(TYPE, "the checkpoint is quantised")
def fp8(bench: Bench) -> Steps:
    path = bench.folder / "checkpoint"
    save_checkpoint("qwen3_moe", path, hidden_size=128, moe_intermediate_size=128, num_hidden_layers=2)
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        tensors[name] = tensor
        if name.endswith("proj.weight"):
            tensors[name] = (tensor.float() * 100).to(torch.float8_e4m3fn)
            blocks = [-(-size // 128) for size in tensor.shape]
            tensors[f"{name}_scale_inv"] = torch.full(blocks, 0.01)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    _quantised(path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128])
    refused = yield bench.pack(path)
    assert "`pip install accelerate`" in refused.next_step
    with pytest.MonkeyPatch.context() as patch:
        if not is_accelerate_available():  # a load onto the CPU asks for the package and does without it
            patch.setattr("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True)
        _run_code(refused, path, bench.folder / "bf16")
    yield bench.pack(bench.folder / "bf16")


@performs(TYPE, "the checkpoint is quantised")
def gptq(bench: Bench) -> Steps:
    path = bench.checkpoint()
    _quantised(path, quant_method="gptq", bits=4)
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("pack the checkpoint in bfloat16, float16 or float32")
    yield bench.pack(bench.original)


@performs(CLASS, "{} has no forward pass of its own")
def a_model_of_several_models(bench: Bench) -> Steps:
    path, config = bench.folder / "checkpoint", tiny_config("qwen3_omni_moe_thinker")
    Qwen3OmniMoeThinkerForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    save_file({f"thinker.{name}": each for name, each in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    thinker = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe", "thinker_config": thinker}))
    refused = yield bench.pack(path)
    assert "Qwen3OmniMoeThinkerForConditionalGeneration" in refused.next_step
    _run_code(refused, path, bench.folder / "text")
    yield bench.pack(bench.folder / "text")


@performs(CLASS, "transformers has no class that generates text")
def a_model_of_images(bench: Bench) -> Steps:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config={**sizes, "image_size": 32})
    path = bench.folder / "checkpoint"
    CLIPModel(config).save_pretrained(path)
    refused = yield bench.pack(path)
    assert refused.next_step == ITSELF
    assert type(AutoModel.from_pretrained(path)) is CLIPModel
    yield Ran(0, "", "")


@performs("zipmoe/model/checkpoint/expert_modules.py", "this {} configuration has no Mixture-of-Experts layer")
def a_dense_model(bench: Bench) -> Steps:
    path = bench.folder / "checkpoint"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=99)).to(torch.bfloat16).save_pretrained(path)
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("serve a dense model with a dense server")
    yield _answers(path)


def _answers(path: Path) -> Ran:
    """Serves a request with stock transformers."""
    answer: Any = load_stock(path)[0].generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3)
    return Ran(0 if answer.shape[-1] == 6 else 1, "", "")


@performs("zipmoe/model/experts/lazy_experts.py", "{}: experts are called with ({})")
def experts_that_are_all_computed(bench: Bench) -> Steps:
    path = bench.folder / "checkpoint"
    write_checkpoint(tiny_config("llama4_text"), path, seed=0)
    refused = yield bench.pack(path)
    assert refused.message.startswith("Llama4TextExperts: experts are called with (hidden_states)")
    assert refused.next_step.startswith("serve this model with transformers")
    yield _answers(path)
