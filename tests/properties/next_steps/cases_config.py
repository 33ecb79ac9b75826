"""Refusals of a checkpoint's directory and config.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.cli.run import zipmoe
from tests.model.hub import edit_config
from tests.properties.next_steps.bench import Bench, Steps, performs

CHECKPOINT = "zipmoe/model/checkpoint/checkpoint.py"
SKELETON = "zipmoe/model/checkpoint/skeleton.py"


@performs(CHECKPOINT, "checkpoint {} does not exist")
def a_path_that_does_not_exist(bench: Bench) -> Steps:
    refused = yield bench.pack(bench.folder / "typo")
    assert refused.next_step.startswith("check the path")
    yield bench.pack(bench.original)


@performs(CHECKPOINT, "{} is a file, not a checkpoint directory")
def a_file_instead_of_its_directory(bench: Bench) -> Steps:
    file = bench.original / "config.json"
    refused = yield bench.pack(file)
    assert refused.next_step == "name the directory it is in"
    yield bench.pack(file.parent)


@performs(CHECKPOINT, "checkpoint {} has no {}")
def a_directory_around_the_checkpoint(bench: Bench) -> Steps:
    refused = yield bench.pack(bench.checkpoint().parent)
    assert refused.next_step == "name a directory in the hub's format"
    yield bench.pack(bench.folder / "checkpoint")


@performs("zipmoe/model/checkpoint/model_type.py", "config.json has no model_type")
def a_config_of_something_else(bench: Bench) -> Steps:
    path = bench.checkpoint()
    adapter = path / "adapter"
    adapter.mkdir()
    (adapter / "config.json").write_text(json.dumps({"peft_type": "LORA"}))
    shutil.copy(next(path.glob("*.safetensors")), adapter / "model.safetensors")
    refused = yield bench.pack(adapter)
    assert refused.next_step == "name the directory of a model in the hub's format"
    yield bench.pack(path)


def _config_that_says(bench: Bench, text: bytes) -> Steps:
    path = bench.checkpoint()
    (path / "config.json").write_bytes(text)
    refused = yield bench.pack(path)
    assert refused.next_step == "download the checkpoint again"
    assert str(path / "config.json") in refused.message
    bench.download_again(path)
    yield bench.pack(path)


@performs(CHECKPOINT, "{} is not valid JSON")
def half_a_config(bench: Bench) -> Steps:
    yield from _config_that_says(bench, (bench.original / "config.json").read_bytes()[:-20])


@performs(CHECKPOINT, "{} holds a JSON {}, not an object")
def a_list_as_config(bench: Bench) -> Steps:
    yield from _config_that_says(bench, b"[]")


@performs(CHECKPOINT, "{} is larger than {} bytes")
def an_endless_config(bench: Bench) -> Steps:
    path = bench.checkpoint()
    os.truncate(path / "config.json", (256 << 20) + 1)
    refused = yield bench.pack(path)
    assert refused.next_step == "download the checkpoint again"
    bench.download_again(path)
    yield bench.pack(path)


@performs("zipmoe/regular_file.py", "{} is {}, not a regular file")
def a_pipe_instead_of_a_file(bench: Bench) -> Steps:
    path = bench.checkpoint()
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    refused = yield bench.pack(path)
    assert "is a FIFO" in refused.message
    assert refused.next_step == "put the file itself, or a link to it, in that place"
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(bench.original / "config.json")
    yield bench.pack(path)


@performs(CHECKPOINT, "config.json puts the weights into {}")
def weights_of_another_name(bench: Bench) -> Steps:
    path = bench.edited(lambda tensors: tensors)
    (path / "model.safetensors").rename(path / "weights.safetensors")
    edit_config(path, transformers_weights="weights.safetensors")
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("rename that file to model.safetensors and remove transformers_weights")
    (path / "weights.safetensors").rename(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    del config["transformers_weights"]
    (path / "config.json").write_text(json.dumps(config))
    yield bench.pack(path)


def _compared_with_the_hub(bench: Bench, found: str, **values: object) -> Steps:
    path = bench.configured(**values)
    refused = yield bench.pack(path)
    assert found in refused.message
    assert refused.next_step == "compare config.json with the one on the model's hub page"
    there = json.loads((bench.original / "config.json").read_text())
    edit_config(path, **{name: there[name] for name in values})
    yield bench.pack(path)


@performs(SKELETON, "transformers refuses the configuration of {}")
def a_number_that_transformers_refuses(bench: Bench) -> Steps:
    yield from _compared_with_the_hub(bench, "num_attention_heads", num_attention_heads="many")


@performs(SKELETON, "config.json has {} {}, {}")
def more_layers_than_tensors(bench: Bench) -> Steps:
    found = "config.json has num_hidden_layers 1000000000, but the checkpoint only"
    yield from _compared_with_the_hub(bench, found, num_hidden_layers=10**9)


@performs(SKELETON, "config.json has {} {}, {}")
def more_experts_than_are_served(bench: Bench) -> Steps:
    found = "config.json has num_experts 1000000, at most 65536 experts of a layer are served"
    yield from _compared_with_the_hub(bench, found, num_experts=10**6)


@performs("zipmoe/model/checkpoint/expert_modules.py", "{} is {} x {}")
def a_matrix_without_columns(bench: Bench) -> Steps:
    yield from _compared_with_the_hub(bench, "a matrix has no weights", moe_intermediate_size=0)


@performs("zipmoe/model/checkpoint/expert_modules.py", "{} has {} experts, at most {} are served")
def more_routed_experts_than_are_served(bench: Bench) -> Steps:
    path = Path(shutil.copytree(bench.hub.get("deepseek_v2", layers=2, vocab=300), bench.folder / "checkpoint"))
    there = json.loads((path / "config.json").read_text())["n_routed_experts"]
    edit_config(path, n_routed_experts=70000)
    refused = yield bench.pack(path)
    assert refused.next_step == "compare config.json with the one on the model's hub page"
    edit_config(path, n_routed_experts=there)
    yield bench.pack(path)


@performs("zipmoe/model/checkpoint/coverage.py", "the checkpoint lacks {} tensors")
def a_config_of_a_larger_model(bench: Bench) -> Steps:
    path = bench.configured(num_hidden_layers=3)
    refused = yield bench.pack(path)
    assert "or compare config.json with its shards" in refused.next_step
    edit_config(path, num_hidden_layers=2)
    yield bench.pack(path)


@performs(CHECKPOINT, "checkpoint {} has no weights: it is a store")
def a_store_instead_of_a_checkpoint(bench: Bench) -> Steps:
    store = bench.store()
    refused = yield bench.pack(store)
    assert refused.next_step == f"run `zipmoe inspect {store}`, or name the checkpoint that it was packed from"
    yield zipmoe("inspect", store)
    yield bench.pack(bench.original)
