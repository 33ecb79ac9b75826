"""Converts groups of checkpoint tensors in memory, by transformers' own operations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch

from zipmoe.arena.headroom import memory_headroom
from zipmoe.errors import UnsupportedModel, ZipMoeError
from zipmoe.model.checkpoint.key_plan import ConversionGroup
from zipmoe.model.checkpoint.shard import COMPARE_SHARDS, TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.raw_tensor import as_tensor, empty_bytes
from zipmoe.store.pack.source import ByteRange, RangeRead
from zipmoe.system_error import first_line

_KEPT_BATCHES = 2
"""The packer's workers are in one layer, or at the end of one and at the start of the next."""

Tensors = Mapping[str, torch.Tensor]


class Conversions:
    """Converts groups one at a time, and keeps the results of the batches that were used last.

    A batch is the parameters of a MoE layer, or a single dense parameter. The results of two batches stay in memory.

    Thread: any number of threads at once; a conversion lets the others wait.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._lock = Lock()
        self._kept: OrderedDict[Hashable, dict[str, Tensors]] = OrderedDict()

    def result(self, batch: Hashable, group: ConversionGroup, read: RangeRead) -> Tensors:
        """Returns the parameters that a group gives, by name, in the dtype of the model.

        Args:
            batch: the batch of the parameter that is wanted.
            group: the group.
            read: reads byte ranges of the checkpoint.

        Raises:
            NotFound, InvalidRequest, CorruptData: a tensor cannot be read.
            UnsupportedModel: an operation fails on the tensors.
        """
        with self._lock:
            results = self._kept.setdefault(batch, {})
            self._kept.move_to_end(batch)
            if len(self._kept) > _KEPT_BATCHES:
                self._kept.popitem(last=False)
            if group.target not in results:
                results[group.target] = convert(group, self._skeleton, read)
            return results[group.target]


@dataclass(frozen=True, eq=False)
class ConvertedPiece:
    """Bytes of a parameter that a conversion gives.

    Attributes:
        conversions: converts the group.
        batch: the batch of the parameter.
        group: the tensors and their conversion.
        parameter: name of the parameter.
        begin: the first byte in the parameter, row-major.
        nbytes: number of bytes.
        sources: the part of the group's byte ranges that a check of this piece covers. The pieces of a parameter cover
            all byte ranges together.
    """

    conversions: Conversions
    batch: Hashable
    group: ConversionGroup
    parameter: str
    begin: int
    nbytes: int
    sources: tuple[ByteRange, ...]

    seekable = False

    @property
    def recipe(self) -> str:
        """The operations, and the place of the piece in their result."""
        return f"{self.parameter} from {self.begin} by {self.group.operations}"

    def derive(self, read: RangeRead, target: memoryview, skip: int) -> None:
        """Copies from the converted parameter; `DerivedPiece.derive` has arguments and errors.

        Raises:
            UnsupportedModel: an operation fails on the tensors.

        Cost: the conversion of the whole group, unless its result is still in memory.
        """
        tensor = self.conversions.result(self.batch, self.group, read)[self.parameter]
        begin = self.begin + skip
        target[:] = raw_bytes(tensor)[begin : begin + len(target)]


def converted_pieces(
    conversions: Conversions, batch: Hashable, group: ConversionGroup, parameter: str, nbytes: int, count: int
) -> list[ConvertedPiece]:
    """Divides a parameter that a conversion gives into pieces of the same size.

    Args:
        conversions: converts the group.
        batch: the batch of the parameter.
        group: the tensors and their conversion.
        parameter: name of the parameter.
        nbytes: bytes of the parameter in the dtype of the model.
        count: number of pieces; divides `nbytes`.

    Raises:
        BudgetInfeasible, ResourceExhausted: the conversion needs more memory than there is.
    """
    sources = [entry.byte_range for _, entry in group.sources]
    # The tensors of the group and the result exist side by side for a moment, beside the results of the last batches.
    needed_bytes = (1 + _KEPT_BATCHES) * nbytes + sum(source.nbytes for source in sources)
    memory_headroom().require(needed_bytes, f"the conversion of {parameter} by {group.operations}")
    return [
        ConvertedPiece(
            conversions, batch, group, parameter, index * nbytes // count, nbytes // count,
            tuple(sources[index * len(sources) // count : (index + 1) * len(sources) // count]),
        )
        for index in range(count)
    ]  # fmt: skip


def convert(group: ConversionGroup, skeleton: Skeleton, read: RangeRead) -> Tensors:
    """Reads, casts and converts a group as `from_pretrained` does, contiguous results included.

    Args:
        group: the group.
        skeleton: the model.
        read: reads byte ranges of the checkpoint.

    Raises:
        NotFound, InvalidRequest, CorruptData: a tensor cannot be read.
        UnsupportedModel: an operation fails on the tensors.
    """
    # transformers casts the tensors of a group to the dtype of the (first) parameter, then converts
    dtype = skeleton.dtype_of(group.target)
    tensors = {entry.name: partial(_load, entry, dtype, read) for _, entry in group.sources}
    return {name: tensor.contiguous() for name, tensor in _run(group, tensors, skeleton).items()}


def meta_results(group: ConversionGroup, skeleton: Skeleton) -> Tensors:
    """Converts without weights: the parameters that a group gives, by name, on the meta device.

    Raises:
        UnsupportedModel: an operation fails on tensors of these shapes.
    """
    dtype = skeleton.dtype_of(group.target)
    tensors = {entry.name: partial(torch.empty, entry.shape, dtype=dtype, device="meta") for _, entry in group.sources}
    return _run(group, tensors, skeleton)


def _run(
    group: ConversionGroup, tensors: Mapping[str, Callable[[], torch.Tensor]], skeleton: Skeleton
) -> dict[str, torch.Tensor]:
    try:
        return group.convert(tensors, skeleton)
    except ZipMoeError:
        raise
    except Exception as error:  # an operation may raise any exception on tensors that do not fit it
        raise UnsupportedModel(
            f"{group.target} cannot be made of {len(group.sources)} tensors like {group.sources[0][1].name!r} by "
            f"{group.operations}: {first_line(error)}",
            next_step=COMPARE_SHARDS,
        ) from error


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Views the bytes of a contiguous tensor in host memory."""
    if not tensor.numel():
        return memoryview(b"")
    view: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return view


def _load(entry: TensorEntry, dtype: torch.dtype, read: RangeRead) -> torch.Tensor:
    storage, view = empty_bytes(entry.nbytes)
    read(entry.byte_range, view)
    return as_tensor(storage, entry.dtype, entry.shape, entry.name, entry.steps).to(dtype)
