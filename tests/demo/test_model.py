"""The shipped checkpoint is what its card says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from demo.corpus import Document
from demo.figures import bits_per_byte, codec_figures, exponent_figures, load_figures, rounded, windows
from demo.routing import expert_loads, record_trace
from demo.tokenizer import CHAT_TEMPLATE, encode
from tests.demo.conftest import DEMO, MODEL

MEGABYTE = 1_000_000


def test_it_is_a_sharded_bf16_checkpoint_of_at_most_24_megabytes() -> None:
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    dtypes = set()
    names = []
    for shard in shards:
        with safe_open(MODEL / shard, "pt") as file:
            names += list(file.keys())
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes == {"BF16"} and sorted(names) == sorted(index["weight_map"])
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 24 * MEGABYTE
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (MODEL / name).is_file()


def test_its_shape_is_that_of_a_small_qwen1_5_moe() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "qwen2_moe"
    assert config["num_hidden_layers"] >= 6 and config["num_experts"] >= 16 and config["num_experts_per_tok"] == 4
    assert config["shared_expert_intermediate_size"] > 0 and 1000 <= config["vocab_size"] <= 4000


def test_the_chat_template_renders_what_it_was_trained_on(tokenizer: Any, held_out: list[Document]) -> None:
    document = held_out[0]
    turns = [{"role": "user", "content": document.title}, {"role": "assistant", "content": document.text}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert rendered == encode(tokenizer, document)
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == f"<|user|>{document.title}<|assistant|>"
    assert tokenizer.chat_template == CHAT_TEMPLATE
    with pytest.raises(Exception, match="system, user and assistant only"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_chat_template_takes_a_system_message(tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ruth 1"},
        {"role": "assistant", "content": "Now"}, {"role": "user", "content": "Ruth 2"},
    ]  # fmt: skip
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown == "<|user|>Be brief.\n\nRuth 1<|assistant|>Now<|endoftext|><|user|>Ruth 2<|assistant|>"


def test_it_beats_xz_on_text_it_has_not_seen(
    model: Any, tokenizer: Any, held_out: list[Document], figures: dict[str, Any]
) -> None:
    assert all(row["model"] < row["xz"] for row in figures["bits_per_byte"].values())
    sample = [document for document in held_out if document.title.startswith("Ruth")]
    row = bits_per_byte(model, tokenizer, sample)["all"]
    assert row["documents"] == 4 and row["model"] < row["xz"]


def test_no_expert_is_dead(model: Any, tokenizer: Any, held_out: list[Document], figures: dict[str, Any]) -> None:
    assert all(layer["least"] >= 1 / 3 for layer in figures["expert_load"])
    counts = expert_loads(model, windows(tokenizer, held_out[::48]))
    assert counts.shape == (6, 16)
    assert all(layer["least"] > 0 for layer in load_figures(counts))


def test_the_figures_of_its_weights_are_as_written(model: Any, figures: dict[str, Any]) -> None:
    assert rounded(exponent_figures(model)) == figures["exponent_entropy"]
    codecs = rounded(codec_figures(model))
    assert {name: codecs[name] for name in figures["codecs"]} == figures["codecs"]


def test_the_shipped_trace_is_what_the_gates_choose(model: Any, tokenizer: Any, held_out: list[Document]) -> None:
    from demo.report import TRACE_PROMPT_TOKENS, TRACE_TOKENS, _texts_to_trace

    shipped = [json.loads(line) for line in (DEMO / "routing-trace.jsonl").read_text().splitlines()]
    passes = {line["step"]: line["tokens"] for line in shipped}
    assert sum(passes.values()) == TRACE_TOKENS
    assert all(set(line) == {"step", "layer", "phase", "experts", "tokens"} for line in shipped)
    assert [line["layer"] for line in shipped] == list(range(6)) * len(passes)
    assert all(len(line["experts"]) == 4 for line in shipped if line["phase"] == "decode")
    begun, _ = record_trace(model, _texts_to_trace(tokenizer, held_out), 60, TRACE_PROMPT_TOKENS)
    same = sum(ours == theirs for ours, theirs in zip(begun, shipped, strict=False))
    # Another machine may round a gate's logits otherwise, and then now and then choose another expert.
    assert same >= 0.9 * len(begun) and torch.is_tensor(next(model.parameters()))
