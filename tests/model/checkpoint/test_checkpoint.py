from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.model.safetensors_file import DATA, ENTRIES, content, write
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedModel
from zipmoe.model.checkpoint import checkpoint as module
from zipmoe.model.checkpoint.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint


@pytest.fixture
def single(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}')
    write(tmp_path / SINGLE_FILE)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "model-00001-of-00002.safetensors")
    write(tmp_path / "model-00002-of-00002.safetensors", {"z": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}})
    index(
        tmp_path, dict.fromkeys(ENTRIES, "model-00001-of-00002.safetensors") | {"z": "model-00002-of-00002.safetensors"}
    )
    return tmp_path


def index(path: Path, weight_map: Any) -> None:
    (path / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_single_file_is_opened(single: Path) -> None:
    opened = open_checkpoint(single)
    assert opened.config == {"model_type": "qwen2_moe"}
    assert set(opened.tensors) == set(ENTRIES)


def test_shards_are_opened_through_their_index(sharded: Path) -> None:
    tensors = open_checkpoint(sharded).tensors
    assert set(tensors) == {*ENTRIES, "z"}
    assert tensors["z"].path == sharded / "model-00002-of-00002.safetensors"
    assert tensors["a"].path == sharded / "model-00001-of-00002.safetensors"


def test_symbolic_links_as_in_a_hub_cache_are_followed(single: Path) -> None:
    blob = single / "blob"
    (single / SINGLE_FILE).rename(blob)
    (single / SINGLE_FILE).symlink_to(blob)
    assert set(open_checkpoint(single).tensors) == set(ENTRIES)


def test_a_single_file_goes_before_an_index_as_in_transformers(sharded: Path) -> None:
    write(sharded / SINGLE_FILE, {"only": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}})
    assert set(open_checkpoint(sharded).tensors) == {"only"}


def test_of_a_tensor_in_two_shards_the_later_shards_counts_as_in_transformers(sharded: Path) -> None:
    write(
        sharded / "model-00002-of-00002.safetensors",
        {"z": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "a": {**ENTRIES["a"], "data_offsets": [4, 16]}},
    )
    assert open_checkpoint(sharded).tensors["a"].path == sharded / "model-00002-of-00002.safetensors"


def test_files_besides_weights_are_listed_and_others_are_not(single: Path) -> None:
    wanted = [
        "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
        "qwen.tiktoken", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "spm.model",
        "tekken.json", "tiktoken.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
        "vocab.txt",
    ]  # fmt: skip
    for name in [*wanted, "README.md", "modeling_odd.py", "optimizer.pt", "LICENSE"]:
        (single / name).touch()
    (single / "config.json").write_text("{}")
    (single / "tokenizer_parts").mkdir()
    assert [file.name for file in open_checkpoint(single).model_files] == wanted


def test_additional_chat_templates_are_listed(single: Path) -> None:
    folder = single / "additional_chat_templates"
    folder.mkdir()
    for name in ("tool_use.jinja", "rag.jinja", "README.md"):
        (folder / name).touch()
    opened = open_checkpoint(single)
    assert opened.chat_templates == (folder / "rag.jinja", folder / "tool_use.jinja")
    assert folder not in opened.model_files


INPUTS = ["config.json", "tokenizer.json", "merges.txt", SINGLE_FILE, "additional_chat_templates/a.jinja"]


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_a_fifo_is_refused_and_not_waited_for(single: Path, name: str) -> None:
    path = single / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(InvalidRequest, match=f"{name} is a FIFO, not a regular file"):
        open_checkpoint(single)


@pytest.mark.parametrize("name", [INDEX_FILE, "model-00002-of-00002.safetensors"])
def test_an_index_or_a_shard_that_is_a_fifo_is_refused(sharded: Path, name: str) -> None:
    (sharded / name).unlink()
    os.mkfifo(sharded / name)
    with pytest.raises(InvalidRequest, match=f"{name} is a FIFO"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_leads_to_a_device_is_refused(single: Path, name: str) -> None:
    path = single / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    with pytest.raises(InvalidRequest, match=f"{name} is a device"):
        open_checkpoint(single)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE_FILE])
def test_a_directory_in_place_of_an_input_is_refused(single: Path, name: str) -> None:
    (single / name).unlink(missing_ok=True)
    (single / name).mkdir()
    with pytest.raises(InvalidRequest, match=f"{name} is a directory"):
        open_checkpoint(single)


def test_a_path_that_does_not_exist_may_be_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"Qwen/Qwen1\.5-MoE-A2\.7B does not exist") as error:
        open_checkpoint(tmp_path / "Qwen" / "Qwen1.5-MoE-A2.7B")
    assert "hf download" in error.value.diagnostics()


def test_a_file_in_place_of_a_directory_is_refused(single: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a file, not a checkpoint directory"):
        open_checkpoint(single / SINGLE_FILE)


def test_a_directory_without_a_configuration_is_refused(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(NotFound, match=r"has no config\.json"):
        open_checkpoint(single)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "JSON list, not an object"),
        (b"null", "JSON NoneType, not an object"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
def test_json_that_is_not_an_object_is_refused(name: str, text: bytes, named: str, sharded: Path) -> None:
    (sharded / name).write_bytes(text)
    with pytest.raises(CorruptData, match=named) as error:
        open_checkpoint(sharded)
    assert name in error.value.message


def test_json_of_absurd_size_is_refused(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 10)
    with pytest.raises(CorruptData, match="larger than 10 bytes"):
        open_checkpoint(single)


def test_a_file_that_may_not_be_read_is_refused(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "open", refuse, raising=False)  # root may read everything, so chmod would not do
    with pytest.raises(InvalidRequest, match=r"config\.json: permission denied"):
        open_checkpoint(single)


def test_a_directory_that_may_not_be_listed_is_refused(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InvalidRequest, match="permission denied"):
        open_checkpoint(single)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match=r"lacks 1 of 2 shards: model-00002-of-00002\.safetensors"):
        open_checkpoint(sharded)


def test_a_link_to_a_blob_that_is_gone_is_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    (sharded / "model-00002-of-00002.safetensors").symlink_to(sharded / "gone")
    with pytest.raises(NotFound, match="lacks 1 of 2 shards"):
        open_checkpoint(sharded)


def test_a_truncated_shard_is_named_with_both_sizes(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CorruptData, match=r"model-00002-of-00002\.safetensors .*truncated: .* \d+ bytes, the file has"):
        open_checkpoint(sharded)


def test_a_tensor_that_only_the_index_knows_is_named(sharded: Path) -> None:
    index(sharded, {"a": "model-00001-of-00002.safetensors", "lost": "model-00002-of-00002.safetensors"})
    with pytest.raises(NotFound, match=r"1 tensors that .* the first is 'lost' in model-00002"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.safetensors", "a/../../x", "", ".", "a\0b", 7, None, ["x"]])
def test_a_shard_outside_the_directory_is_refused(name: object, sharded: Path) -> None:
    index(sharded, {"a": name})
    with pytest.raises(CorruptData, match="as the shard of 'a'"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_weight_map_is_refused(weight_map: object, sharded: Path) -> None:
    index(sharded, weight_map)
    with pytest.raises(CorruptData, match="has no weight_map"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["adapter.bin", "model.gguf", "consolidated.00.pth", "tf_model.h5"])
def test_weights_in_another_format_are_refused_with_the_weights_to_download(name: str, single: Path) -> None:
    (single / SINGLE_FILE).rename(single / name)
    with pytest.raises(UnsupportedModel, match=rf"neither safetensors nor pytorch_model\.bin, only {name}") as error:
        open_checkpoint(single)
    assert "download the model.safetensors" in error.value.diagnostics()


def test_a_directory_without_weights_is_refused(single: Path) -> None:
    (single / SINGLE_FILE).unlink()
    with pytest.raises(NotFound, match=r"none of model\.safetensors, .*, pytorch_model\.bin"):
        open_checkpoint(single)


def test_weights_under_a_name_of_their_own_are_refused(single: Path) -> None:
    (single / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    with pytest.raises(UnsupportedModel, match=r"other\.safetensors"):
        open_checkpoint(single)


def test_nothing_but_headers_is_read(single: Path) -> None:
    # 64 GiB of weights, none of them on the disk
    nbytes = 64 << 30
    header = {"big": {"dtype": "BF16", "shape": [nbytes // 2], "data_offsets": [0, nbytes]}}
    with (single / SINGLE_FILE).open("wb") as file:
        file.write(content(header, b""))
        file.truncate(file.tell() + nbytes)
    assert open_checkpoint(single).tensors["big"].nbytes == nbytes
    assert len(DATA) == 16
