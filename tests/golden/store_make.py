"""Makes the golden stores of the current format version: `python -m tests.golden.store_make`.

It was run once when version 1 of the format was fixed. The directories are kept for ever and never made again; a later
version of the format, or a new codec, adds directories of its own (add it to `STORES` and run this).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.store.sources import BytesPiece, DiskSource, weights
from zipmoe.codec.registry import create_codec
from zipmoe.store.format.layout import TensorSpec
from zipmoe.store.pack.source import ByteRange, DenseTensor, LayerSource, TensorSource
from zipmoe.store.pack.writer import PackOptions, pack_store

GOLDEN = Path(__file__).parent
SOURCE = GOLDEN / "store-v1-source"
STORES = {
    "store-v1-zstd": "zstd",
    "store-v1-raw": "raw",
    "store-v1-cascade": "cascade",
    "store-v1-huffman": "huffman",
    "store-v1-lz4hc": "lz4hc",
}
SPECS = (TensorSpec("gate_up_proj", 28, 12), TensorSpec("down_proj", 12, 14))
EXPERTS = 2
DENSE_BYTES = bytes(range(48))


@dataclass(frozen=True)
class GoldenTensor:
    """One matrix of the golden checkpoint and the file that holds its bf16 bytes."""

    spec: TensorSpec
    path: Path


def golden_tensors(expert: int) -> tuple[GoldenTensor, ...]:
    return tuple(GoldenTensor(spec, SOURCE / f"expert-{expert}-{spec.name}.bf16") for spec in SPECS)


def golden_source() -> DiskSource:
    """The checkpoint that every golden store of version 1 was packed from."""
    experts = tuple(
        tuple(
            TensorSource(tensor.spec, (ByteRange(tensor.path, 0, tensor.spec.nbytes),))
            for tensor in golden_tensors(expert)
        )
        for expert in range(EXPERTS)
    )
    layers = (LayerSource("model.layers.1.mlp.experts", experts),)
    dense = [DenseTensor("model.norm.weight", "BF16", (24,), (BytesPiece(DENSE_BYTES),))]
    return DiskSource("qwen2_moe", layers, dense, [SOURCE / "config.json"], (SOURCE, SOURCE))


def main() -> None:
    if not SOURCE.exists():
        SOURCE.mkdir()
        seeds = random.Random(1)
        for expert in range(EXPERTS):
            for tensor in golden_tensors(expert):
                tensor.path.write_bytes(weights(tensor.spec.weight_count, seeds.getrandbits(32)))
        (SOURCE / "config.json").write_text('{"model_type": "qwen2_moe"}\n')
    for name, codec in STORES.items():
        if not (GOLDEN / name).exists():
            pack_store(golden_source(), GOLDEN / name, PackOptions(codec=create_codec(codec)))
            print(f"made {name}")


if __name__ == "__main__":
    main()
