"""A small store of random experts, packed with the real packer, and its experts' true bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zipmoe.codec.registry import create_codec
from zipmoe.store.format.layout import ExpertSpec, TensorSpec
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.pack.writer import PackOptions, pack_store
from zipmoe.types import ExpertKey


@dataclass(frozen=True)
class TinySource:
    """An expert source over one raw file."""

    layers: Sequence[LayerSource]
    family: str = "tiny"
    dense_tensors: Sequence[DenseTensor] = ()
    model_files: Sequence[Path] = ()
    chat_templates: Sequence[Path] = ()
    measured: MeasuredSizes | None = None
    left_out: Sequence[str] = ()
    mtp_layers: int = 0


@dataclass(frozen=True)
class TinyStore:
    """A packed store, and what its experts look like when recovered (with the padding between tensors zero)."""

    path: Path
    manifest: Manifest
    experts: dict[ExpertKey, bytes]

    def keys(self) -> list[ExpertKey]:
        return list(self.experts)

    def damage(self, key: ExpertKey, at: int = 100) -> None:
        """Flips one bit of an expert's record on disk."""
        record = self.manifest.record(key)
        with (self.path / self.manifest.files[record.file].name).open("r+b") as file:
            file.seek(record.offset + at)
            byte = file.read(1)[0]
            file.seek(record.offset + at)
            file.write(bytes([byte ^ 1]))


MODEL_CONFIG = {"num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}

#: The high byte of a weight holds its sign and 7 bits of its exponent; the low byte can be anything.
_HIGH_BYTES = bytes((byte & 0x80) | (0x3C, 0x3C, 0x3D, 0x3B)[byte & 3] for byte in range(256))


def bf16_bytes(weights: random.Random, count: int) -> bytes:
    """Random bf16 weights with few distinct exponents, little-endian."""
    out = bytearray(weights.randbytes(2 * count))
    out[1::2] = out[1::2].translate(_HIGH_BYTES)
    return bytes(out)


def make_store(
    folder: Path,
    *,
    layers: int = 2,
    experts: int = 4,
    shapes: Sequence[tuple[int, int]] = ((48, 40), (40, 24)),
    e_chunks: int = 3,
    codec: str = "zstd",
    seed: int = 0,
) -> TinyStore:
    """Packs random experts into `folder`/store, beside a config.json that is good for sizing memory."""
    weights = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "weights.bin"
    spec = ExpertSpec(tuple(TensorSpec(f"matrix{index}", *shape) for index, shape in enumerate(shapes)))
    truth: dict[ExpertKey, bytes] = {}
    sources: list[LayerSource] = []
    with raw.open("wb") as file:
        for layer in range(layers):
            rows = []
            for expert in range(experts):
                recovered = bytearray(spec.tensor_bytes)
                tensors = []
                for tensor, offset in zip(spec.tensors, spec.tensor_offsets, strict=True):
                    data = bf16_bytes(weights, tensor.weight_count)
                    tensors.append(TensorSource(tensor, (ByteRange(raw, file.tell(), len(data)),)))
                    file.write(data)
                    recovered[offset : offset + len(data)] = data
                rows.append(tuple(tensors))
                truth[ExpertKey(layer, expert)] = bytes(recovered)
            sources.append(LayerSource(f"model.layers.{layer}.mlp.experts", rows))
    options = PackOptions(codec=create_codec(codec), e_chunks_per_tensor=e_chunks, workers=1)
    source = TinySource(sources)
    report = pack_store(source, folder / "store", options)
    raw.unlink()
    (folder / "store" / "config.json").write_text(json.dumps(MODEL_CONFIG))
    return TinyStore(folder / "store", report.manifest, truth)


def tensor_spans(manifest: Manifest, key: ExpertKey) -> Iterator[tuple[int, int]]:
    """Where the weights of an expert's tensors stand in a recovered slot; between them is padding."""
    spec = manifest.layers[key.layer].spec
    for tensor, offset in zip(spec.tensors, spec.tensor_offsets, strict=True):
        yield offset, offset + tensor.nbytes
