"""Small checkpoints on disk, as the packer sees them: raw bytes in shards, and places in them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zipmoe.store.format.layout import TensorSpec
from zipmoe.store.format.measured import MeasuredSizes
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, RangeRead, TensorSource

HIDDEN = 24
INTERMEDIATE = 20


@dataclass(frozen=True)
class BytesPiece:
    """A derived piece whose bytes are known."""

    content: bytes
    sources: tuple[ByteRange, ...] = ()
    seekable = True
    recipe = "known"

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def derive(self, read: RangeRead, target: memoryview, skip: int) -> None:
        target[:] = self.content[skip : skip + len(target)]


@dataclass(frozen=True)
class DiskSource:
    """An `ExpertSource` whose shards were written by `make_source`."""

    family: str
    layers: Sequence[LayerSource]
    dense_tensors: Iterable[DenseTensor]
    model_files: Sequence[Path]
    shards: tuple[Path, Path]
    chat_templates: Sequence[Path] = ()
    measured: MeasuredSizes | None = None
    left_out: Sequence[str] = ()
    mtp_layers: int = 0

    def tensor_bytes(self, layer: int, expert: int, tensor: int) -> bytes:
        pieces = self.layers[layer].experts[expert][tensor].pieces
        return b"".join(piece.path.read_bytes()[piece.offset : piece.offset + piece.nbytes] for piece in pieces)


def weights(count: int, seed: int) -> bytes:
    """bf16 bytes with the exponents of trained weights, and with every kind of value among them."""
    rng = random.Random(seed)
    special = (0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x0001, 0xFFFF)
    values = [
        rng.choice(special)
        if rng.random() < 0.01
        else rng.getrandbits(9) << 7 & 0x8000 | rng.getrandbits(7) | min(max(int(rng.gauss(120, 2)), 0), 255) << 7
        for _ in range(count)
    ]
    return b"".join(value.to_bytes(2, "little") for value in values)


def make_source(
    folder: Path,
    *,
    layers: int = 2,
    experts: int = 3,
    hidden: int = HIDDEN,
    intermediate: int = INTERMEDIATE,
    seed: int = 1,
) -> DiskSource:
    """Writes two shards; gate and up are separate pieces, and every second expert straddles both shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = (folder / "model-1.safetensors", folder / "model-2.safetensors")
    contents = [bytearray(b"header of shard 1"), bytearray(b"header 2")]

    def place(shard: int, data: bytes) -> ByteRange:
        offset = len(contents[shard])
        contents[shard].extend(data)
        return ByteRange(shards[shard], offset, len(data))

    layer_sources = []
    for layer in range(layers):
        layer_experts = []
        for expert in range(experts):
            base = seed * 1_000_003 + (layer * experts + expert) * 3
            gate = place(0, weights(intermediate * hidden, base))
            up = place(expert % 2, weights(intermediate * hidden, base + 1))
            down = place(1, weights(hidden * intermediate, base + 2))
            layer_experts.append(
                (
                    TensorSource(TensorSpec("gate_up_proj", 2 * intermediate, hidden), (gate, up)),
                    TensorSource(TensorSpec("down_proj", hidden, intermediate), (down,)),
                )
            )
        layer_sources.append(LayerSource(f"model.layers.{layer}.mlp.experts", tuple(layer_experts)))
    dense = [
        DenseTensor("model.norm.weight", "BF16", (hidden,), (place(0, weights(hidden, seed)),)),
        DenseTensor("model.embed_tokens.weight", "BF16", (50, hidden), (place(1, weights(50 * hidden, seed + 1)),)),
        DenseTensor("model.layers.0.mlp.gate.weight", "F32", (2, 2), (BytesPiece(bytes(range(16))),)),
        DenseTensor("model.flag", "BOOL", (3,), (BytesPiece(b"\1\0\1"),)),
        DenseTensor("model.scale", "F32", (), (place(0, b"\0\0\x80\x3f"),)),
    ]
    for path, content in zip(shards, contents, strict=True):
        path.write_bytes(content)
    files = (folder / "config.json", folder / "tokenizer.json")
    files[0].write_text('{"model_type": "qwen2_moe"}')
    files[1].write_text('{"words": "äöü"}')
    return DiskSource("qwen2_moe", tuple(layer_sources), dense, files, shards)


def change_expert(source: DiskSource, layer: int, expert: int, tensors: tuple[TensorSource, ...]) -> DiskSource:
    """The source with one expert's matrices replaced."""
    layers = list(source.layers)
    experts = list(layers[layer].experts)
    experts[expert] = tensors
    layers[layer] = replace(layers[layer], experts=tuple(experts))
    return replace(source, layers=tuple(layers))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
