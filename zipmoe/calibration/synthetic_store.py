"""Packs stores of a few random experts, to measure codecs where there is no store yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zipmoe.codec.registry import codec_names, create_codec
from zipmoe.store.format.layout import TensorSpec
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.pack.writer import PackOptions, pack_store

SPECS = (TensorSpec("gate_up_proj", 2816, 2048), TensorSpec("down_proj", 2048, 1408))
"""Matrices of an expert of Qwen1.5-MoE-A2.7B."""

EXPERTS = 3
SPREAD = 0.02


@dataclass(frozen=True)
class _Source:
    """An `ExpertSource` over one raw file."""

    layers: Sequence[LayerSource]
    family: str = "synthetic"
    dense_tensors: Sequence[DenseTensor] = ()
    model_files: Sequence[Path] = ()
    chat_templates: Sequence[Path] = ()
    measured: MeasuredSizes | None = None
    left_out: Sequence[str] = ()
    mtp_layers: int = 0


def synthetic_stores(folder: Path, *, specs: Sequence[TensorSpec] = SPECS) -> Iterator[Path]:
    """Packs the same normally distributed weights with every codec.

    Args:
        folder: an existing, empty directory.
        specs: the matrices of an expert.

    Yields:
        The directory of each store.

    Raises:
        As `pack_store`.
    """
    raw = folder / "weights.bin"
    draw = np.random.default_rng(0)
    experts = []
    with raw.open("wb") as file:
        for _ in range(EXPERTS):
            tensors = []
            for spec in specs:
                weights = draw.standard_normal(spec.weight_count, dtype=np.float32) * np.float32(SPREAD)
                tensors.append(TensorSource(spec, (ByteRange(raw, file.tell(), spec.nbytes),)))
                # The upper half of a float32 is a bf16, rounded towards zero.
                file.write((weights.view(np.uint32) >> 16).astype("<u2").tobytes())
            experts.append(tuple(tensors))
    source = _Source([LayerSource("experts", experts)])
    for name in codec_names():
        store = folder / name
        pack_store(source, store, PackOptions(codec=create_codec(name)))
        yield store
