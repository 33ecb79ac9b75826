"""Opens a checkpoint directory in the hub's format: configuration and place of every tensor, without any weight."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from zipmoe.errors import CorruptData, InvalidRequest, NotFound, UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint.shard import DOWNLOAD_AGAIN, TensorEntry, read_shard_header
from zipmoe.regular_file import check_regular_file, open_regular_file
from zipmoe.store.format.fields import TEMPLATE_FOLDER, TEMPLATE_SUFFIX
from zipmoe.store.format.manifest import MANIFEST_NAME
from zipmoe.system_error import CHECK_ACCESS, reason_of

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"
MAX_JSON_BYTES = 256 << 20

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")

# Files that a store needs beside weights, so that tokenizer and generation defaults are the checkpoint's own.
MODEL_FILE_PATTERNS = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges*", "special_tokens_map*",
    "added_tokens*", "spiece.model", "spm.model", "sentencepiece*.model", "tiktoken.model", "*.tiktoken",
    "tekken.json", "chat_template*",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: the directory.
        config: content of config.json, parsed but not interpreted.
        tensors: every tensor of every shard by key. If two shards hold the same key, the later shard counts, as in
            transformers.
        model_files: configuration, tokenizer and generation files, sorted by name.
        chat_templates: the files `additional_chat_templates/*.jinja`, sorted by name.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    model_files: tuple[Path, ...]
    chat_templates: tuple[Path, ...]


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a hub-format directory: config.json, and weights in one file or in shards with an index.

    Safetensors are preferred to .bin shards, as in `from_pretrained`.

    Args:
        path: the directory. The content is not trusted.

    Raises:
        NotFound: no such directory, no config.json, no weights, a missing shard, or a tensor that the index names and
            the shard lacks.
        InvalidRequest: `path` is a file, the directory or a file may not be read, or a FIFO, a device, a socket or a
            directory stands in place of a file.
        CorruptData: JSON that does not parse, a truncated or malformed shard.
        UnsupportedModel: the weights are neither safetensors nor .bin shards, are in a file of an unusual name, or
            loading a .bin shard would run code.
        BudgetInfeasible, ResourceExhausted: a .bin shard cannot be mapped and is larger than the memory.

    Cost: reads the JSON files and the shards' headers; .bin shards from before torch 1.6 as a whole, into memory.
    """
    try:
        return _open(path)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {reason_of(error)}", next_step=CHECK_ACCESS) from None


def _open(path: Path) -> Checkpoint:
    if not path.exists():
        raise NotFound(
            f"checkpoint {path} does not exist",
            next_step="check the path; a model on a hub is downloaded first, for example with `hf download NAME`",
        )
    if not path.is_dir():
        raise InvalidRequest(f"{path} is a file, not a checkpoint directory", next_step="name the directory it is in")
    model_files, chat_templates = _model_files(path), _chat_templates(path)
    config = read_json_object(path / "config.json")
    if (file_name := config.get("transformers_weights")) is not None:
        raise UnsupportedModel(
            f"config.json puts the weights into {file_name!r}, which is not a name of the hub's format",
            next_step=f"rename that file to {SINGLE_FILE} and remove transformers_weights from config.json",
        )
    return Checkpoint(path, config, _read_weights(path), model_files, chat_templates)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        NotFound: no such file.
        InvalidRequest: the file may not be read, or is not a regular file.
        CorruptData: over `MAX_JSON_BYTES`, not UTF-8, not JSON, or not an object.
    """
    try:
        with open(open_regular_file(path), "rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(
            f"checkpoint {path.parent} has no {path.name}", next_step="name a directory in the hub's format"
        ) from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {reason_of(error)}", next_step=CHECK_ACCESS) from None
    if len(content) > MAX_JSON_BYTES:
        raise CorruptData(f"{path} is larger than {MAX_JSON_BYTES} bytes", next_step=DOWNLOAD_AGAIN)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{path} is not valid JSON: {error}", next_step=DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise CorruptData(f"{path} holds a JSON {type(value).__name__}, not an object", next_step=DOWNLOAD_AGAIN)
    return value


def _read_weights(path: Path) -> dict[str, TensorEntry]:
    # transformers prefers safetensors to .bin, and the single file to an index
    for single, index in ((SINGLE_FILE, INDEX_FILE), (BIN_FILE, BIN_INDEX_FILE)):
        if (path / single).exists():
            return _read_shard(path / single)
        if (path / index).exists():
            return _read_shards(path, index)
    raise _missing_weights(path)


def _read_shard(path: Path) -> dict[str, TensorEntry]:
    if path.suffix == ".safetensors":
        return read_shard_header(path)
    from zipmoe.model.checkpoint.bin_shard import read_bin_shard  # needs torch, which takes seconds to import

    return read_bin_shard(path)


def _read_shards(path: Path, index: str) -> dict[str, TensorEntry]:
    weight_map = read_json_object(path / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptData(f"{path / index} has no weight_map", next_step=DOWNLOAD_AGAIN)
    inside: set[str] = set()
    for key, name in weight_map.items():
        if not isinstance(name, str) or (name not in inside and not _stays_inside(name)):
            raise CorruptData(
                f"{path / index} names {str(name)[:200]!r} as the shard of {key!r}", next_step=DOWNLOAD_AGAIN
            )
        inside.add(name)
    tensors: dict[str, TensorEntry] = {}
    names = sorted(inside)
    if missing := [name for name in names if not (path / name).exists()]:
        raise NotFound(
            f"checkpoint {path} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:8])}",
            next_step="download the checkpoint again, or wait until its download has ended",
        )
    keys_of: dict[str, dict[str, TensorEntry]] = {}
    for name in names:
        keys_of[name] = _read_shard(path / name)
        tensors.update(keys_of[name])
    if absent := [(key, name) for key, name in weight_map.items() if key not in keys_of[name]]:
        key, name = absent[0]
        raise NotFound(
            f"{len(absent)} tensors that {index} lists are not in their shards, the first is {key!r} in {name}",
            next_step="download the checkpoint again: index and shards are of different versions",
        )
    return tensors


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def _missing_weights(path: Path) -> ZipMoeError:
    if (path / MANIFEST_NAME).exists():
        return NotFound(
            f"checkpoint {path} has no weights: it is a store, and packed already",
            next_step=f"run `zipmoe inspect {path}`, or name the checkpoint that it was packed from",
        )
    other = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_WEIGHTS)
    if other:
        return UnsupportedModel(
            f"checkpoint {path} has neither safetensors nor {BIN_FILE}, only {', '.join(other[:4])}",
            next_step=f"download the {SINGLE_FILE} or {BIN_FILE} of the model, with the index where there is one",
        )
    found = sorted(file.name for file in path.glob("*.safetensors"))
    return NotFound(
        f"checkpoint {path} has none of {SINGLE_FILE}, {INDEX_FILE}, {BIN_FILE}, {BIN_INDEX_FILE}"
        + (f", only {', '.join(found[:4])}" if found else ""),
        next_step="download the weights, too, and the index of their shards where there is one",
    )


def _model_files(path: Path) -> tuple[Path, ...]:
    files = [file for file in path.iterdir() if any(fnmatch(file.name, pattern) for pattern in MODEL_FILE_PATTERNS)]
    return _regular(file for file in files if file.suffix or not file.is_dir())  # `tokenizer_parts/` is no tokenizer


def _chat_templates(path: Path) -> tuple[Path, ...]:
    folder = path / TEMPLATE_FOLDER
    return _regular(folder.glob(f"*{TEMPLATE_SUFFIX}")) if folder.is_dir() else ()


def _regular(files: Iterable[Path]) -> tuple[Path, ...]:
    """Sorts files and refuses those that are no regular files. A link that leads nowhere is left out."""
    existing = sorted(file for file in files if file.exists())
    for file in existing:
        check_regular_file(file)
    return tuple(existing)
