"""Lists the dense tensors of a checkpoint, under the names and in the dtypes of the model's state dict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.checkpoint.conversion import Conversions, converted_pieces, meta_results
from zipmoe.model.checkpoint.coverage import tied_names
from zipmoe.model.checkpoint.key_plan import ConversionGroup, KeyPlan
from zipmoe.model.checkpoint.shard import COMPARE_SHARDS, UNQUANTISED, TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import DenseTensor
from zipmoe.store.verify.compare import first_difference

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COMPARED_BYTES = 8 << 20


@dataclass(frozen=True)
class DenseCatalogue:
    """The dense tensors of a checkpoint. Iterable repeatedly; bytes are read or converted when they are needed."""

    tensors: tuple[DenseTensor, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names of all dense tensors."""
        return frozenset(tensor.name for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all dense tensors, in the dtypes of the model."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __iter__(self) -> Iterator[DenseTensor]:
        return iter(self.tensors)


def catalogue_dense(skeleton: Skeleton, plan: KeyPlan, routed: set[str]) -> DenseCatalogue:
    """Lists the dense tensors of a checkpoint.

    Args:
        skeleton: the model.
        plan: the assignment of checkpoint tensors to parameters.
        routed: the parameters of routed experts, which are left out.

    Returns:
        The dense tensors. One of several tied parameters with equal values is kept, as `save_pretrained` does. Tied
        parameters with different values in the checkpoint are all kept, and `tie_weights` leaves them untied.

    Raises:
        UnsupportedModel: a shape differs from the model's, or a dtype or conversion is not known.
        BudgetInfeasible, ResourceExhausted: a conversion needs more memory than there is.
    """
    conversions = Conversions(skeleton)
    found: dict[str, DenseTensor] = {}
    for group in plan.groups.values():
        if group.target not in routed:
            for tensor in _tensors(group, skeleton, conversions):
                if tensor.name in skeleton.state:
                    _check_shape(tensor, group, skeleton)
                    found[tensor.name] = tensor
    with closing(PieceReader()) as reader:
        for names in tied_names(skeleton):
            present = [name for name in names if name in found]
            for name in present[1:]:
                if _are_equal(found[name], found[present[0]], reader):
                    del found[name]
    return DenseCatalogue(tuple(found.values()))


def _tensors(group: ConversionGroup, skeleton: Skeleton, conversions: Conversions) -> Iterator[DenseTensor]:
    for _, entry in group.sources:
        _check_dtype(entry)
    first = group.sources[0][1]
    if group.converter is None and first.is_row_major:
        dtype = _DTYPE_NAMES[skeleton.dtype_of(group.target)]
        piece = first.byte_range if first.dtype == dtype else CastPiece(first.byte_range, first.dtype, dtype)
        yield DenseTensor(group.target, dtype, first.shape, (piece,))
        return
    for name, result in meta_results(group, skeleton).items():
        pieces = converted_pieces(conversions, group.target, group, name, result.nbytes, 1)
        yield DenseTensor(name, _DTYPE_NAMES[result.dtype], tuple(result.shape), tuple(pieces))


def _check_dtype(entry: TensorEntry) -> None:
    if entry.dtype not in DTYPES:
        raise UnsupportedModel(
            f"dense tensor {entry.name!r} has dtype {entry.dtype}, as only quantised checkpoints have it",
            next_step=UNQUANTISED,
        )


def _check_shape(tensor: DenseTensor, group: ConversionGroup, skeleton: Skeleton) -> None:
    shape = tuple(skeleton.state[tensor.name].shape)
    if tensor.shape != shape:
        raise UnsupportedModel(
            f"tensor {group.sources[0][1].name!r} gives {tensor.name} the shape {list(tensor.shape)}, "
            f"the model has {list(shape)}",
            next_step=COMPARE_SHARDS,
        )


def _are_equal(one: DenseTensor, other: DenseTensor, reader: PieceReader) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.pieces == other.pieces:  # one storage of a .bin shard under two names
        return True
    left, right = (memoryview(bytearray(min(_COMPARED_BYTES, one.nbytes))) for _ in range(2))
    for begin in range(0, one.nbytes, _COMPARED_BYTES):
        nbytes = min(_COMPARED_BYTES, one.nbytes - begin)
        reader.read(one.pieces, left[:nbytes], skip=begin)
        reader.read(other.pieces, right[:nbytes], skip=begin)
        if first_difference(left[:nbytes], right[:nbytes]) is not None:
            return False
    return True
