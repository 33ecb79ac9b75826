"""Entries of a manifest (files, layers and experts), and the conversion of entries to JSON and back."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from zipmoe.store.format.fields import Fields, checked_integer, checked_list, checked_xxh3, xxh3_text
from zipmoe.store.format.layout import ExpertSpec, PackedTensorEntry, TensorSpec, e_chunk_rows

MAX_BYTES = 1 << 60
"""Larger than any file. The bound keeps sums of sizes far below the limit of 64-bit integers."""

MAX_WEIGHTS = 1 << 40
MAX_TENSORS = 64
MAX_EXPERTS = 1 << 20


@dataclass(frozen=True)
class ExpertFile:
    """A file of records. Each record has checksums of its own."""

    name: str
    nbytes: int

    def to_json(self) -> dict[str, object]:
        """Returns the JSON form of the manifest."""
        return {"name": self.name, "bytes": self.nbytes}

    @classmethod
    def from_json(cls, fields: Fields) -> ExpertFile:
        """Reads the JSON form of the manifest; CorruptData if it is malformed."""
        return cls(fields.file_name("name"), fields.integer("bytes", 0, MAX_BYTES))


@dataclass(frozen=True)
class ChecksummedFile:
    """A dense shard, a model file or a chat template, with an xxh3-64 over all bytes."""

    name: str
    nbytes: int
    xxh3: int

    def to_json(self) -> dict[str, object]:
        """Returns the JSON form of the manifest."""
        return {"name": self.name, "bytes": self.nbytes, "xxh3": xxh3_text(self.xxh3)}

    @classmethod
    def from_json(cls, fields: Fields, *, chat_template: bool = False) -> ChecksummedFile:
        """Reads the JSON form of the manifest; CorruptData if it is malformed.

        Args:
            fields: the entry.
            chat_template: the name has to be that of a chat template, instead of a plain file name.
        """
        name = fields.template_name("name") if chat_template else fields.file_name("name")
        return cls(name, fields.integer("bytes", 0, MAX_BYTES), fields.xxh3("xxh3"))


@dataclass(frozen=True)
class LayerEntry:
    """A Mixture-of-Experts layer: module path in the model, matrices of an expert, number of experts."""

    module: str
    spec: ExpertSpec
    expert_count: int

    def to_json(self) -> dict[str, object]:
        """Returns the JSON form of the manifest."""
        tensors = [{"name": tensor.name, "rows": tensor.rows, "cols": tensor.cols} for tensor in self.spec.tensors]
        return {"module": self.module, "tensors": tensors}

    @classmethod
    def from_json(cls, fields: Fields, expert_count: int) -> LayerEntry:
        """Reads the JSON form of the manifest; CorruptData if it is malformed."""
        tensors = []
        for tensor in fields.objects("tensors", 1, MAX_TENSORS):
            rows = tensor.integer("rows", 1, MAX_WEIGHTS)
            cols = tensor.integer("cols", 1, MAX_WEIGHTS // rows)
            tensors.append(TensorSpec(tensor.text("name"), rows, cols))
        return cls(fields.text("module"), ExpertSpec(tuple(tensors)), expert_count)


@dataclass(frozen=True)
class ExpertEntry:
    """Place of an expert's record, with the stored sizes and checksums. The sizes determine the layout."""

    file: int
    offset: int
    tensors: tuple[PackedTensorEntry, ...]

    def to_json(self) -> dict[str, object]:
        """Returns the JSON form of the manifest."""
        return {
            "file": self.file,
            "offset": self.offset,
            "e": [list(tensor.e_sizes) for tensor in self.tensors],
            "e_xxh3": [[xxh3_text(value) for value in tensor.e_xxh3] for tensor in self.tensors],
            "sm_xxh3": [xxh3_text(tensor.sm_xxh3) for tensor in self.tensors],
            "tensor_xxh3": [xxh3_text(tensor.tensor_xxh3) for tensor in self.tensors],
        }

    @classmethod
    def from_json(cls, value: object, where: str, spec: ExpertSpec, chunk_count: int) -> ExpertEntry:
        """Reads the JSON form; CorruptData if it is malformed or does not fit the layer's matrices."""
        fields = Fields(value, where)
        tensor_count = len(spec.tensors)
        e_sizes = fields.items("e", tensor_count, tensor_count)
        e_xxh3 = fields.items("e_xxh3", tensor_count, tensor_count)
        sm_xxh3 = fields.items("sm_xxh3", tensor_count, tensor_count)
        tensor_xxh3 = fields.items("tensor_xxh3", tensor_count, tensor_count)
        tensors = []
        for index, tensor in enumerate(spec.tensors):
            chunks = len(e_chunk_rows(tensor.rows, chunk_count))
            sizes = checked_list(e_sizes[index], f"'e' of {where}", chunks, chunks)
            xxh3s = checked_list(e_xxh3[index], f"'e_xxh3' of {where}", chunks, chunks)
            tensors.append(
                PackedTensorEntry(
                    tuple(checked_integer(size, f"an E-chunk size of {where}", 1, MAX_BYTES) for size in sizes),
                    tuple(checked_xxh3(xxh3, f"an E-chunk checksum of {where}") for xxh3 in xxh3s),
                    checked_xxh3(sm_xxh3[index], f"an SM-chunk checksum of {where}"),
                    checked_xxh3(tensor_xxh3[index], f"a tensor checksum of {where}"),
                )
            )
        return cls(fields.integer("file", 0, MAX_EXPERTS), fields.integer("offset", 0, MAX_BYTES), tuple(tensors))


class ExpertTable:
    """The entries of all experts of a layer, in one array of 8 bytes a number.

    A model of 15 000 experts has 400 000 such numbers. As Python objects the numbers would take 30 MB of each process.
    """

    def __init__(self, entries: Iterable[ExpertEntry], spec: ExpertSpec, chunk_count: int) -> None:
        self._chunk_counts = tuple(len(e_chunk_rows(tensor.rows, chunk_count)) for tensor in spec.tensors)
        self._width = 2 + sum(2 * count + 2 for count in self._chunk_counts)
        self._numbers = array("Q", chain.from_iterable(_numbers_of(entry) for entry in entries))

    def __len__(self) -> int:
        return len(self._numbers) // self._width

    def __getitem__(self, expert: int) -> ExpertEntry:
        if not 0 <= expert < len(self):
            raise IndexError(expert)
        row = self._numbers[expert * self._width : (expert + 1) * self._width].tolist()
        tensors = []
        begin = 2
        for count in self._chunk_counts:
            middle, end = begin + count, begin + 2 * count
            tensors.append(PackedTensorEntry(tuple(row[begin:middle]), tuple(row[middle:end]), row[end], row[end + 1]))
            begin = end + 2
        return ExpertEntry(row[0], row[1], tuple(tensors))


def _numbers_of(entry: ExpertEntry) -> list[int]:
    numbers = [entry.file, entry.offset]
    for tensor in entry.tensors:
        numbers += [*tensor.e_sizes, *tensor.e_xxh3, tensor.sm_xxh3, tensor.tensor_xxh3]
    return numbers
