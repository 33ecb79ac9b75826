"""Estimates the size of a store before it is packed, and refuses to begin if the disk has too little space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from zipmoe.errors import ResourceExhausted
from zipmoe.store.format.layout import ALIGNMENT_BYTES, CHUNK_ALIGNMENT_BYTES, TAIL_PADDING_BYTES, align
from zipmoe.store.pack.dense_shards import DenseShard
from zipmoe.store.pack.expert_packer import ExpertPacker, PackingBuffers
from zipmoe.store.pack.source import ExpertSource, copied_files

_SAMPLED_LAYERS = 4
# Other experts may compress worse than the sampled ones. On trained models the ratios differ by less than 3%.
_MARGIN = 1.03


def estimate_bytes(
    source: ExpertSource, dense: Sequence[DenseShard], packer: ExpertPacker, buffers: PackingBuffers
) -> int:
    """Estimates the bytes of a whole store from the codec's worst ratio on one tensor of up to 4 layers.

    Raises:
        NotFound, InvalidRequest, CorruptData: a sampled tensor cannot be read.

    Cost: reads and compresses up to 4 tensors.
    """
    layers = source.layers
    picked = layers[:: -(-len(layers) // _SAMPLED_LAYERS)]
    ratio = max(packer.sample_ratio(layer.experts[0][0], buffers) for layer in picked) * _MARGIN
    total = sum(shard.data_bytes + len(shard.header()) for shard in dense)
    total += sum(path.stat().st_size for _, path in copied_files(source))
    for layer in layers:
        for tensor in layer.spec.tensors:
            e_bytes = int(tensor.weight_count * ratio) + packer.chunk_count * CHUNK_ALIGNMENT_BYTES + TAIL_PADDING_BYTES
            total += len(layer.experts) * (align(e_bytes) + align(tensor.weight_count))
    return total + ALIGNMENT_BYTES * len(layers)


def check_disk_space(directory: Path, needed_bytes: int) -> None:
    """Compares the estimate with the free bytes plus the bytes of earlier runs in the directory.

    Raises:
        ResourceExhausted: the store does not fit.
    """
    present_bytes = sum(entry.stat().st_blocks * 512 for entry in os.scandir(directory) if entry.is_file())
    free_bytes = shutil.disk_usage(directory).free
    if present_bytes + free_bytes < needed_bytes:
        raise ResourceExhausted(
            f"the store needs about {needed_bytes} bytes in {directory}, "
            f"but {free_bytes} are free and {present_bytes} already written",
            next_step="make room, or choose a destination on another disk",
        )
