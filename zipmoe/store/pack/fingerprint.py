"""Computes a fingerprint of a checkpoint from samples, so that a pack recognises the input of an earlier pack."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from zipmoe.store.format.fields import canonical_json
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import (
    ByteRange,
    DenseTensor,
    ExpertSource,
    Piece,
    TensorSource,
    copied_files,
    ranges_of,
)

_SAMPLE_BYTES = 4096


def source_fingerprint(source: ExpertSource, reader: PieceReader) -> int:
    """Computes the xxh3-64 of a checkpoint's structure, model files and 4 KiB from the middle of each tensor.

    A matrix that is transposed or converted is sampled where the checkpoint holds it.

    The fingerprint depends neither on paths and times nor on the distribution of tensors over shards. Checkpoints of
    the same shape from different trainings have different fingerprints. Equal fingerprints do not prove that two
    checkpoints are equal (`verify --against` does).

    Raises:
        NotFound, InvalidRequest, CorruptData: a shard or model file cannot be read.

    Cost: one small read a tensor.
    """
    digest = xxhash.xxh3_64()
    digest.update(canonical_json([source.family, len(source.layers)]))
    for layer in source.layers:
        shapes = [[tensor.name, tensor.rows, tensor.cols] for tensor in layer.spec.tensors]
        digest.update(canonical_json([layer.module, len(layer.experts), shapes]))
        for tensors in layer.experts:
            for tensor in tensors:
                digest.update(_expert_sample(reader, tensor))
    # The checksums are sorted, not the tensors: a source may create tensors one at a time while it is iterated.
    for _, dense_sum in sorted((tensor.name, _dense_sum(tensor, reader)) for tensor in source.dense_tensors):
        digest.update(dense_sum)
    for name, path in copied_files(source):
        digest.update(canonical_json(name))
        whole = reader.whole_file(path)
        content = memoryview(bytearray(whole.nbytes))
        reader.read((whole,), content)
        digest.update(content)
    return digest.intdigest()


def _dense_sum(tensor: DenseTensor, reader: PieceReader) -> bytes:
    digest = xxhash.xxh3_64(canonical_json([tensor.name, tensor.dtype, list(tensor.shape)]))
    digest.update(_sample(reader, tensor.pieces, tensor.nbytes))
    return digest.digest()


def _expert_sample(reader: PieceReader, tensor: TensorSource) -> bytes:
    """Samples a matrix, or the bytes that it is computed from if a part of it costs as much as the whole."""
    if all(isinstance(piece, ByteRange) or piece.seekable for piece in tensor.pieces):
        return bytes(_sample(reader, tensor.pieces, tensor.spec.nbytes))
    sample = b""
    for piece in tensor.pieces:
        sample += canonical_json("" if isinstance(piece, ByteRange) else piece.recipe)
        for place in ranges_of((piece,)):
            sample += _sample(reader, (place,), place.nbytes)
    return sample


def _sample(reader: PieceReader, pieces: Sequence[Piece], nbytes: int) -> bytearray:
    sample = bytearray(min(nbytes, _SAMPLE_BYTES))
    reader.read(pieces, memoryview(sample), skip=(nbytes - len(sample)) // 2)
    return sample
