"""Writes safetensors shards front to back, while threads draw the weights."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipmoe.model.synth.inventory import SynthTensor
from zipmoe.model.synth.values import BLOCK_WEIGHTS, normal_block, one

# Most blocks in memory at once, of 8 to 16 MiB each. This bounds the memory of a synthesis.
_BLOCKS_AHEAD = 6

Shard = list[SynthTensor]


def divide(tensors: Sequence[SynthTensor], shards_bytes: int, *, straddle: bool) -> list[Shard]:
    """Divides tensors over shards.

    Args:
        tensors: the tensors in the order of the checkpoint.
        shards_bytes: most bytes of a shard with more than one tensor.
        straddle: whether to distribute the tensors in turn over at least two shards instead, so that no expert with a
            tensor per matrix lies in a single shard.

    Returns:
        The shards, none of them empty.
    """
    if straddle:
        shard_count = max(2, -(-sum(tensor.nbytes for tensor in tensors) // shards_bytes))
        return [shard for i in range(shard_count) if (shard := list(tensors[i::shard_count]))]
    shards: list[Shard] = []
    filled = 0
    for tensor in tensors:
        if not shards or filled + tensor.nbytes > shards_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def file_names(shard_count: int) -> list[str]:
    """Returns the hub's file names for a number of shards."""
    if shard_count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{shard_count:05d}.safetensors" for i in range(shard_count)]


def write_shard(path: Path, shard: Shard, seed: int, executor: Executor, on_written: Callable[[int], None]) -> None:
    """Writes a shard, block by block. Threads of `executor` draw the blocks.

    Args:
        path: path of the new file.
        shard: tensors of the shard.
        seed: seed of the checkpoint.
        executor: threads that draw blocks.
        on_written: called after each block with the number of bytes.

    Raises:
        OSError: the disk is full or fails; the file is then incomplete.
    """
    # Wider dtypes first, as safetensors itself does, so that every tensor is aligned to its dtype.
    shard = sorted(shard, key=lambda tensor: -tensor.weight_bytes)
    with open(path, "xb", buffering=0) as file:
        _write_all(file.fileno(), _header(shard))
        pending: deque[Future[npt.NDArray[Any]]] = deque()
        for tensor, block, weight_count in _blocks(shard):
            pending.append(executor.submit(_make, seed, tensor, block, weight_count))
            if len(pending) == _BLOCKS_AHEAD:
                on_written(_write_all(file.fileno(), pending.popleft().result().data))
        while pending:
            on_written(_write_all(file.fileno(), pending.popleft().result().data))


def _header(shard: Shard) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.nbytes]
        }  # fmt: skip
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(shard: Shard) -> Iterator[tuple[SynthTensor, int, int]]:
    for tensor in shard:
        for block, first in enumerate(range(0, tensor.weight_count, BLOCK_WEIGHTS)):
            yield tensor, block, min(BLOCK_WEIGHTS, tensor.weight_count - first)


def _make(seed: int, tensor: SynthTensor, block: int, weight_count: int) -> npt.NDArray[Any]:
    if tensor.std == 0.0:
        return np.repeat(one(tensor.dtype), weight_count)
    return normal_block(seed, tensor.name, block, weight_count, tensor.std, tensor.dtype)


def _write_all(descriptor: int, content: bytes | memoryview) -> int:
    view = memoryview(content).cast("B")
    done = 0
    while done < len(view):
        done += os.write(descriptor, view[done:])
    return len(view)
