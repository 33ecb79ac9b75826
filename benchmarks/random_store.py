"""A packed store of random experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zipmoe.codec.registry import create_codec
from zipmoe.store.format.layout import ExpertSpec
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.pack.writer import PackOptions, pack_store


@dataclass(frozen=True)
class RandomSource:
    """Experts of weights drawn from N(0, 0.02), in one raw file."""

    layers: tuple[LayerSource, ...]
    family: str = "random"
    dense_tensors: tuple[DenseTensor, ...] = ()
    model_files: tuple[Path, ...] = ()
    chat_templates: tuple[Path, ...] = ()
    measured: MeasuredSizes | None = None
    left_out: tuple[str, ...] = ()
    mtp_layers: int = 0


def make_store(folder: Path, spec: ExpertSpec, experts: int, codec: str, e_chunks: int) -> Path:
    """Packs `experts` random experts and returns the store's directory."""
    random = np.random.default_rng(0)
    raw = folder / "weights.bin"
    sources = []
    with raw.open("wb") as file:
        for _ in range(experts):
            tensors = []
            for tensor in spec.tensors:
                weights = random.standard_normal(tensor.weight_count, dtype=np.float32) * np.float32(0.02)
                begin = file.tell()
                file.write((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                tensors.append(TensorSource(tensor, (ByteRange(raw, begin, tensor.nbytes),)))
            sources.append(tuple(tensors))
    source = RandomSource((LayerSource("layers.0.experts", sources),))
    pack_store(source, folder / "store", PackOptions(codec=create_codec(codec), e_chunks_per_tensor=e_chunks))
    raw.unlink()
    return folder / "store"
