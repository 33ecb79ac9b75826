"""Writes synthetic hub checkpoints: the true names, shapes and files of a model family, with random weights."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from zipmoe.errors import InvalidRequest, ResourceExhausted, UnsupportedModel
from zipmoe.model.checkpoint.checkpoint import INDEX_FILE
from zipmoe.model.checkpoint.skeleton import Skeleton, skeleton_of
from zipmoe.model.synth.configs import FAMILIES, Config, configuration
from zipmoe.model.synth.inventory import SynthTensor, list_tensors
from zipmoe.model.synth.shards import divide, file_names, write_shard
from zipmoe.model.synth.tokenizer_files import special_ids, write_tokenizer
from zipmoe.system_error import first_line, reason_of

TRUE_SHARDS_BYTES = 4_000_000_000
TINY_SHARDS_BYTES = 400_000
_OTHER_FILES_BYTES = 32 << 20


@dataclass(frozen=True)
class SynthProgress:
    """Progress of a synthesis: `written_bytes` of `total_bytes` of weights, and the current shard `file_name`."""

    written_bytes: int
    total_bytes: int
    file_name: str


@dataclass(frozen=True)
class SynthSummary:
    """Summary of a written checkpoint."""

    family: str
    path: Path
    tensor_count: int
    shard_count: int
    weight_bytes: int


def synthesise(
    family: str,
    dst: Path,
    *,
    true_widths: bool = False,
    layers: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    shards_bytes: int | None = None,
    packed: bool = False,
    straddle: bool = False,
    mtp: bool = False,
    overrides: Mapping[str, Any] | None = None,
    worker_count: int = 2,
    progress: Callable[[SynthProgress], None] | None = None,
) -> SynthSummary:
    """Writes a hub-format checkpoint of a family. Equal arguments give equal bytes.

    Args:
        family: one of `zipmoe.model.synth.configs.FAMILIES`.
        dst: a directory that does not exist or is empty.
        true_widths: whether to use the sizes of the real model; otherwise tiny sizes, some megabytes.
        layers: number of layers instead of the model's; for an encoder-decoder, the number in each half.
        vocab: vocabulary size instead of the model's.
        seed: seed of the weights, at least 0.
        shards_bytes: most bytes of a shard; None for 4 GB, or 400 kB for tiny models.
        packed: whether to write one tensor for all experts of a layer, as newer checkpoints do, or one per expert.
        straddle: whether to spread the tensors of every expert over several shards.
        mtp: whether to write the layers for multi-token prediction that the configuration states.
        overrides: further values of config.json, by name.
        worker_count: number of threads that draw weights.
        progress: called after every block of weights, in the caller's thread.

    Returns:
        A summary of the checkpoint. config.json is written last: without it a directory is no checkpoint.

    Raises:
        InvalidRequest: an argument is out of range, or `dst` is not empty or may not be written.
        UnsupportedModel: no configuration of this family is known, or transformers refuses the configuration.
        ResourceExhausted: the disk does not have enough room; the directory is left empty.

    Cost: 200 MB of memory at any size; time bound by the disk, or by about 1 GB/s per thread.
    """
    for name, number, least in (
        ("seed", seed, 0), ("shard size", shards_bytes, 1), ("number of workers", worker_count, 1),
        ("number of layers", layers, 1), ("vocabulary", vocab, 1),
    ):  # fmt: skip
        if number is not None and number < least:
            raise InvalidRequest(f"the {name} is {number}, at least {least} is needed")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"no configuration of a {family!r} model is known here", next_step=f"name one of {', '.join(FAMILIES)}"
        )
    config = configuration(
        family,
        true_widths=true_widths,
        layers=layers,
        vocab=vocab,
        overrides={**special_ids(family), **(overrides or {})},
    )
    tensors = list_tensors(_skeleton(family, config), packed=packed, mtp=mtp)
    shards = divide(
        tensors, shards_bytes or (TRUE_SHARDS_BYTES if true_widths else TINY_SHARDS_BYTES), straddle=straddle
    )
    names = file_names(len(shards))
    total_bytes = sum(tensor.nbytes for tensor in tensors)
    _prepare(dst, total_bytes + _OTHER_FILES_BYTES)
    written_bytes = 0
    try:
        write_tokenizer(family, config["vocab_size"], dst)
        with ThreadPoolExecutor(worker_count, thread_name_prefix="synth") as executor:
            for name, shard in zip(names, shards, strict=True):

                def on_written(nbytes: int, name: str = name) -> None:
                    nonlocal written_bytes
                    written_bytes += nbytes
                    if progress is not None:
                        progress(SynthProgress(written_bytes, total_bytes, name))

                write_shard(dst / name, shard, seed, executor, on_written)
        _write_json_files(dst, config, dict(zip(names, shards, strict=True)), total_bytes)
    except BaseException as error:
        _remove_content(dst)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceExhausted(
                f"the disk of {dst} was full after {written_bytes} of {total_bytes} bytes",
                next_step="free disk space, or ask for fewer layers",
            ) from None
        raise
    return SynthSummary(family, dst, len(tensors), len(shards), total_bytes)


def _skeleton(family: str, config: Config) -> Skeleton:
    try:
        return skeleton_of(family, AutoConfig.for_model(**config), "the synthetic checkpoint")
    except Exception as error:  # the caller's overrides can make transformers raise any exception
        raise UnsupportedModel(
            f"transformers refuses this {family} configuration: {first_line(error)}",
            next_step="correct or leave out the values that were given for config.json",
        ) from error


def _prepare(dst: Path, needed_bytes: int) -> None:
    try:
        dst.mkdir(parents=True, exist_ok=True)
        if any(dst.iterdir()):
            raise InvalidRequest(f"{dst} is not empty", next_step="name a directory that does not exist yet")
    except OSError as error:
        raise InvalidRequest(f"cannot write to {dst}: {reason_of(error)}", next_step="name another directory") from None
    free_bytes = shutil.disk_usage(dst).free
    if free_bytes < needed_bytes:
        raise ResourceExhausted(
            f"the checkpoint needs {needed_bytes} bytes, the disk of {dst} has {free_bytes} left",
            next_step="free disk space, or ask for fewer layers",
        )


def _write_json_files(dst: Path, config: Config, shards: Mapping[str, list[SynthTensor]], total_bytes: int) -> None:
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
        _write_json(dst / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    _write_json(dst / "generation_config.json", {"_from_model_config": True, **ids})
    _write_json(dst / "config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _remove_content(dst: Path) -> None:
    # dst was empty before the synthesis, so every file in it comes from the synthesis
    for file in dst.iterdir():
        file.unlink()
