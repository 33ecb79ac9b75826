"""Refusals of a checkpoint's weights: shards, their index, dtypes and shapes."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.model.hub import Tensors, copy_without_weights, edit_config, load_stock
from tests.properties.next_steps.bench import Bench, Steps, performs

CHECKPOINT = "zipmoe/model/checkpoint/checkpoint.py"
SHARD = "zipmoe/model/checkpoint/shard.py"
BIN = "zipmoe/model/checkpoint/bin_shard.py"
ROWS = "zipmoe/model/checkpoint/row_trace.py"
DENSE = "zipmoe/model/checkpoint/dense_sources.py"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
NORM = "model.norm.weight"
AGAIN = "download the checkpoint again"
INDEX = "model.safetensors.index.json"


def _tensors(path: Path) -> Tensors:
    return {name: tensor for shard in sorted(path.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


def _sharded(bench: Bench) -> Path:
    """A checkpoint of two shards with an index."""
    path = bench.edited(dict)
    names = sorted(tensors := _tensors(path))
    (path / "model.safetensors").unlink()
    from safetensors.torch import save_file

    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, part in parts.items():
        save_file({name: tensors[name] for name in part}, path / shard, {"format": "pt"})
    index = {"weight_map": {name: shard for shard, part in parts.items() for name in part}}
    (path / INDEX).write_text(json.dumps(index))
    return path


def _damaged(bench: Bench, damage: Callable[[Path], object], next_step: str = AGAIN) -> Steps:
    path = _sharded(bench)
    damage(path)
    refused = yield bench.pack(path)
    assert refused.next_step.startswith(next_step)
    bench.download_again(path)
    yield bench.pack(path)


@performs(CHECKPOINT, "checkpoint {} has none of")
def no_weights(bench: Bench) -> Steps:
    path = _sharded(bench)
    (path / INDEX).rename(bench.folder / INDEX)
    refused = yield bench.pack(path)
    assert "only model-1.safetensors, model-2.safetensors" in refused.message
    assert refused.next_step == "download the weights, too, and the index of their shards where there is one"
    (bench.folder / INDEX).rename(path / INDEX)
    yield bench.pack(path)


@performs(CHECKPOINT, "checkpoint {} has neither safetensors nor")
def weights_of_another_program(bench: Bench) -> Steps:
    path = bench.folder / "checkpoint"
    copy_without_weights(bench.original, path)
    (path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    refused = yield bench.pack(path)
    assert "model-Q4_K_M.gguf" in refused.message
    assert refused.next_step.startswith("download the model.safetensors or pytorch_model.bin of the model")
    torch.save(_tensors(bench.original), path / "pytorch_model.bin")
    yield bench.pack(path)


@performs(CHECKPOINT, "{} has no weight_map")
def an_index_without_a_map(bench: Bench) -> Steps:
    yield from _damaged(bench, lambda path: (path / INDEX).write_text("{}"))


@performs(CHECKPOINT, "{} names {} as the shard of {}")
def an_index_that_leaves_the_directory(bench: Bench) -> Steps:
    text = json.dumps({"weight_map": {NORM: "../other.safetensors"}})
    yield from _damaged(bench, lambda path: (path / INDEX).write_text(text))


@performs(CHECKPOINT, "checkpoint {} lacks {} of {} shards")
def a_missing_shard(bench: Bench) -> Steps:
    yield from _damaged(bench, lambda path: (path / "model-2.safetensors").unlink())


@performs(CHECKPOINT, "{} tensors that {} lists are not in their shards")
def an_index_of_another_version(bench: Bench) -> Steps:
    yield from _damaged(
        bench, lambda path: shutil.copy(path / "model-1.safetensors", path / "model-2.safetensors"), AGAIN
    )


@performs(SHARD, "shard {} cannot be used")
def a_truncated_shard(bench: Bench) -> Steps:
    def truncate(path: Path) -> None:
        with (path / "model-2.safetensors").open("r+b") as file:
            file.truncate(file.seek(0, 2) - 10)

    yield from _damaged(bench, truncate)


@performs(SHARD, "shard {} is a git-lfs pointer")
def a_pointer_instead_of_a_shard(bench: Bench) -> Steps:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000000\n"
    yield from _damaged(bench, lambda path: (path / "model-1.safetensors").write_text(pointer), "run `git lfs pull`")


@performs(SHARD, "tensor {} in shard {} has dtype {}")
def a_dtype_of_the_future(bench: Bench) -> Steps:
    def rename(path: Path) -> None:
        content = (path / "model-1.safetensors").read_bytes()
        (nbytes,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + nbytes].replace(b'"BF16"', b'"X16B"')
        (path / "model-1.safetensors").write_bytes(content[:8] + header + content[8 + nbytes :])

    yield from _damaged(bench, rename, "use a checkpoint of the model in bfloat16")


def _edited(bench: Bench, edit: Callable[[Tensors], Tensors], next_step: str) -> Steps:
    """The tensors are another model's or another dtype; the checkpoint as it was published is served."""
    path = bench.edited(edit)
    refused = yield bench.pack(path)
    assert refused.next_step.startswith(next_step)
    bench.download_again(path)
    yield bench.pack(path)


@performs("zipmoe/model/checkpoint/coverage.py", "the checkpoint lacks {} tensors")
def a_missing_tensor(bench: Bench) -> Steps:
    yield from _edited(bench, lambda tensors: {name: tensors[name] for name in tensors if name != EXPERT}, AGAIN)


@performs(DENSE, "dense tensor {} has dtype {}")
def a_quantised_dense_tensor(bench: Bench) -> Steps:
    yield from _edited(bench, lambda tensors: {**tensors, NORM: tensors[NORM].to(torch.float8_e4m3fn)}, "use a")


@performs(ROWS, "routed tensor {} has dtype {}")
def a_quantised_expert(bench: Bench) -> Steps:
    yield from _edited(bench, lambda tensors: {**tensors, EXPERT: tensors[EXPERT].to(torch.int8)}, "use a checkpoint")


@performs(ROWS, "routed tensor {} has dtype {}")
def an_expert_in_float32(bench: Bench) -> Steps:
    path = bench.edited(lambda tensors: {**tensors, EXPERT: tensors[EXPERT].to(torch.int8)})
    refused = yield bench.pack(path)
    assert "float32" in refused.next_step
    yield bench.pack(bench.edited(lambda tensors: {**tensors, EXPERT: tensors[EXPERT].float()}, "float32"))


def _another_models(bench: Bench, path: Path, **there: object) -> Steps:
    """A number of config.json is that of another model."""
    refused = yield bench.pack(path)
    assert refused.next_step == "compare config.json with the shards: they are of different models or versions"
    edit_config(path, **there)
    yield bench.pack(path)


@performs(DENSE, "tensor {} gives {} the shape {}")
def a_config_with_another_vocabulary(bench: Bench) -> Steps:
    yield from _another_models(bench, bench.configured(vocab_size=200), vocab_size=300)


@performs(ROWS, "{} should be bf16 of shape {}")
def a_config_with_narrower_experts(bench: Bench) -> Steps:
    there = json.loads((bench.original / "config.json").read_text())["moe_intermediate_size"]
    path = bench.configured(moe_intermediate_size=there - 8)
    yield from _another_models(bench, path, moe_intermediate_size=there)


@performs(ROWS, "tensor {} has shape {}, the model {}")
def a_config_with_narrower_packed_experts(bench: Bench) -> Steps:
    packed = bench.hub.get("qwen2_moe", packed=True, layers=2, vocab=300)
    path = Path(shutil.copytree(packed, bench.folder / "checkpoint"))
    there = json.loads((path / "config.json").read_text())["moe_intermediate_size"]
    edit_config(path, moe_intermediate_size=there - 8)
    yield from _another_models(bench, path, moe_intermediate_size=there)


@performs("zipmoe/model/checkpoint/conversion.py", "{} cannot be made of {} tensors")
def experts_of_different_sizes(bench: Bench) -> Steps:
    path = bench.edited(lambda tensors: {**tensors, EXPERT: tensors[EXPERT][:-1].clone()})
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("compare config.json with the shards")
    bench.download_again(path)
    yield bench.pack(path)


def _bin(bench: Bench, edit: Callable[[Tensors], object] = dict) -> Path:
    path = bench.folder / "checkpoint"
    copy_without_weights(bench.original, path)
    torch.save(edit(_tensors(bench.original)), path / "pytorch_model.bin")
    return path


def _with_safetensors(bench: Bench, path: Path) -> Steps:
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("use the model's safetensors")
    for shard in (*bench.original.glob("*.safetensors"), *bench.original.glob("*.index.json")):
        shutil.copy(shard, path)
    yield bench.pack(path)


@performs(BIN, "shard {} cannot be used")
def a_truncated_bin_shard(bench: Bench) -> Steps:
    path = _bin(bench)
    with (path / "pytorch_model.bin").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    refused = yield bench.pack(path)
    assert refused.next_step == AGAIN
    shutil.rmtree(path)
    yield bench.pack(_bin(bench))


@performs(BIN, "shard {} is a TorchScript archive")
def a_program_instead_of_weights(bench: Bench) -> Steps:
    path = _bin(bench)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path / "pytorch_model.bin"))  # type: ignore[no-untyped-call]
    yield from _with_safetensors(bench, path)


class _Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("code of a checkpoint",)


@performs(BIN, "shard {} holds more than weights")
def a_shard_that_would_run_code(bench: Bench) -> Steps:
    yield from _with_safetensors(bench, _bin(bench, lambda tensors: {**tensors, "code": _Code()}))


@performs(BIN, "tensor {} in shard {} is {}")
def a_sparse_tensor(bench: Bench) -> Steps:
    yield from _with_safetensors(bench, _bin(bench, lambda tensors: {**tensors, NORM: tensors[NORM].to_sparse()}))


@performs(BIN, "the numbers of shard {} are big-endian")
def a_shard_of_a_big_endian_machine(bench: Bench) -> Steps:
    path = _bin(bench)
    (path / "pytorch_model.bin").rename(bench.folder / "little.bin")
    with (
        zipfile.ZipFile(bench.folder / "little.bin") as little,
        zipfile.ZipFile(path / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as big,
    ):
        for record in little.infolist():
            order = record.filename.endswith("/byteorder")
            big.writestr(record.filename, b"big" if order else little.read(record))
    refused = yield bench.pack(path)
    assert refused.next_step.startswith("load it with transformers where you trust it, and call save_pretrained")
    load_stock(path)[0].save_pretrained(bench.folder / "saved")
    yield bench.pack(bench.folder / "saved")
