"""Yields the dense tensors of a checkpoint, under the names and in the dtypes of the model's state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from zipmoe.errors import UnsupportedModel
from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.checkpoint.coverage import tied_names
from zipmoe.model.checkpoint.key_plan import ConversionGroup, KeyPlan
from zipmoe.model.checkpoint.shard import TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.raw_tensor import DTYPES, as_tensor, empty_bytes, read_pieces
from zipmoe.store.pack.source import DenseTensor
from zipmoe.system_error import first_line

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class DenseCatalogue:
    """The dense tensors of a checkpoint. Iterable repeatedly; one conversion is in memory at a time."""

    skeleton: Skeleton
    groups: tuple[ConversionGroup, ...]
    names: frozenset[str]

    @property
    def nbytes(self) -> int:
        """Bytes of all dense tensors, in the dtypes of the model."""
        state = self.skeleton.state
        return sum(prod(state[name].shape) * self.skeleton.dtype_of(name).itemsize for name in self.names)

    def __iter__(self) -> Iterator[DenseTensor]:
        for group in self.groups:
            if group.converter is None:
                if group.target in self.names:
                    yield self._unconverted(group)
                continue
            for name, tensor in _converted(group, self.skeleton).items():
                if name in self.names:
                    dtype = _DTYPE_NAMES[tensor.dtype]
                    yield DenseTensor(name, dtype, tuple(tensor.shape), data=_tensor_bytes(tensor))

    def _unconverted(self, group: ConversionGroup) -> DenseTensor:
        entry = group.sources[0][1]
        dtype = _DTYPE_NAMES[self.skeleton.dtype_of(group.target)]
        piece = entry.byte_range if entry.dtype == dtype else CastPiece(entry.byte_range, entry.dtype, dtype)
        return DenseTensor(group.target, dtype, entry.shape, (piece,))


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
    """
    groups = tuple(group for group in plan.groups.values() if group.target not in routed)
    group_of: dict[str, ConversionGroup] = {}
    for group in groups:
        for name, shape in _result_shapes(group, skeleton).items():
            if name in skeleton.state and shape != tuple(skeleton.state[name].shape):
                raise UnsupportedModel(
                    f"tensor {group.sources[0][1].name!r} gives {name} the shape {list(shape)}, "
                    f"the model has {list(skeleton.state[name].shape)}"
                )
            group_of[name] = group
        for _, entry in group.sources:
            _check_dtype(entry)
    kept = {name for name in group_of if name in skeleton.state}
    for names in tied_names(skeleton):
        present = [name for name in names if name in kept]
        for name in present[1:]:
            if _content(name, group_of, skeleton) == _content(present[0], group_of, skeleton):
                kept.discard(name)
    return DenseCatalogue(skeleton, groups, frozenset(kept))


def _result_shapes(group: ConversionGroup, skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    """Computes the names and shapes of a group's parameters, without reading a weight."""
    if group.converter is None:
        return {group.target: group.sources[0][1].shape}
    shells = {entry.name: torch.empty(entry.shape, device="meta") for _, entry in group.sources}
    return {name: tuple(tensor.shape) for name, tensor in _convert(group, shells, skeleton).items()}


def _converted(group: ConversionGroup, skeleton: Skeleton) -> dict[str, torch.Tensor]:
    # transformers casts the tensors of a group to the dtype of the (first) parameter, then converts
    dtype = skeleton.dtype_of(group.target)
    return _convert(group, {entry.name: _load(entry).to(dtype) for _, entry in group.sources}, skeleton)


def _convert(
    group: ConversionGroup, tensors: Mapping[str, torch.Tensor], skeleton: Skeleton
) -> dict[str, torch.Tensor]:
    try:
        return group.convert(tensors, skeleton)
    except Exception as error:
        operations = ", ".join(repr(operation) for operation in group.converter.operations) if group.converter else ""
        raise UnsupportedModel(
            f"{group.target} cannot be made of {len(group.sources)} tensors like {group.sources[0][1].name!r} by "
            f"{operations}: {first_line(error)}"
        ) from error


def _check_dtype(entry: TensorEntry) -> None:
    if entry.dtype not in DTYPES:
        raise UnsupportedModel(f"dense tensor {entry.name!r} has dtype {entry.dtype}, not one of {', '.join(DTYPES)}")


def _load(entry: TensorEntry) -> torch.Tensor:
    storage, view = empty_bytes(entry.nbytes)
    read_pieces([entry.byte_range], view, f"tensor {entry.name!r}")
    return as_tensor(storage, entry.dtype, entry.shape, entry.name)


def _content(name: str, group_of: Mapping[str, ConversionGroup], skeleton: Skeleton) -> bytes:
    return _tensor_bytes(_converted(group_of[name], skeleton)[name])


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
