"""Checks an expert of a store: chunks, padding, recovered tensors, and on request the checkpoint's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zipmoe.codec.base import Codec
from zipmoe.errors import CorruptData
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.layout import ExpertRecord, TensorRecord
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import TensorSource
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.store.read.reader import damaged_chunks
from zipmoe.store.read.record_file import RecordFile
from zipmoe.store.read.recovery import recover_tensor
from zipmoe.store.verify.compare import first_difference
from zipmoe.types import ExpertKey, Part


class CheckBuffers:
    """Reusable buffers for checking an expert: a record, a recovered matrix, and the checkpoint's matrix."""

    def __init__(self, manifest: Manifest) -> None:
        largest = _largest_tensor_bytes(manifest)
        self.record = aligned_memory(manifest.max_record_bytes)
        self.recovered = memoryview(bytearray(largest))
        self.original = memoryview(bytearray(largest))

    @staticmethod
    def nbytes(manifest: Manifest) -> int:
        """Computes the bytes of the buffers for a store."""
        return manifest.max_record_bytes + 2 * _largest_tensor_bytes(manifest)


class ExpertCheck:
    """Checks experts, in any number of threads with separate buffers."""

    def __init__(
        self, manifest: Manifest, codec: Codec, files: Sequence[RecordFile | None], pieces: PieceReader
    ) -> None:
        self._manifest = manifest
        self._codec = codec
        self._files = files
        self._pieces = pieces

    def problems(self, key: ExpertKey, original: Sequence[TensorSource] | None, buffers: CheckBuffers) -> list[str]:
        """Lists all problems of an expert.

        Args:
            key: the expert; its file has to be open.
            original: the expert's matrices in the checkpoint, for a comparison byte for byte, or None.
            buffers: buffers of the calling thread.

        Raises:
            NotFound, CorruptData: the checkpoint cannot be read.
        """
        record = self._manifest.record(key)
        file = self._files[record.file]
        assert file is not None
        slot = buffers.record[: record.nbytes]
        try:
            file.read(record.offset, slot)
        except CorruptData as error:
            return [f"{key}: {error.message}"]
        damages = list(damaged_chunks(record, Part.ALL, slot))
        problems = [f"{key}: {damage.describe(record)} has a wrong checksum" for damage in damages]
        problems += [f"{key}: padding at {record.offset + place} is not zero" for place in _dirty_padding(record, slot)]
        for index, tensor in enumerate(record.tensors):
            if any(damage.tensor == index for damage in damages):
                continue
            problem = self._tensor_problem(tensor, None if original is None else original[index], buffers)
            if problem is not None:
                problems.append(f"{key}: {tensor.spec.name} {problem}")
        return problems

    def _tensor_problem(self, tensor: TensorRecord, original: TensorSource | None, buffers: CheckBuffers) -> str | None:
        recovered = buffers.recovered[: tensor.spec.nbytes]
        try:
            recover_tensor(self._codec, tensor, buffers.record, recovered)
        except CorruptData as error:
            return f"cannot be recovered: {error.message}"
        if xxh3(recovered) != tensor.xxh3:
            return "has a wrong checksum when recovered"
        if original is None:
            return None
        expected = buffers.original[: tensor.spec.nbytes]
        self._pieces.read(original.pieces, expected)
        place = first_difference(recovered, expected)
        if place is None:
            return None
        row, col = divmod(place // 2, tensor.spec.cols)
        return f"differs from the checkpoint, first in row {row}, column {col}"


def _dirty_padding(record: ExpertRecord, slot: memoryview) -> Iterator[int]:
    """Yields the start of each run of padding that is not all zero."""
    position = 0
    for begin, end in [*((span.offset, span.end) for span in record.chunks(Part.ALL)), (record.nbytes, record.nbytes)]:
        if slot[position:begin].tobytes().strip(b"\0"):
            yield position
        position = end


def _largest_tensor_bytes(manifest: Manifest) -> int:
    return max(tensor.nbytes for layer in manifest.layers for tensor in layer.spec.tensors)
