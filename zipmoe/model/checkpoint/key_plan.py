"""Assigns checkpoint tensors to model parameters, by transformers' own conversion tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import WeightConverter

from zipmoe.model.checkpoint.shard import TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton
from zipmoe.model.stock.conversion_tables import ConversionTable, converted, in_stock_order


@dataclass
class ConversionGroup:
    """The checkpoint tensors that are the inputs of a conversion.

    Attributes:
        target: name of the model parameter; of the first parameter if the conversion gives several.
        converter: the conversion; None if a single tensor only changes its name.
        sources: (source pattern, tensor) pairs in the order in which transformers collects the tensors.
    """

    target: str
    converter: WeightConverter | None
    sources: list[tuple[str, TensorEntry]] = field(default_factory=list)

    @property
    def operations(self) -> str:
        """The operations of the conversion, for messages."""
        return ", ".join(repr(operation) for operation in self.converter.operations) if self.converter else "renaming"

    def convert(
        self, tensors: Mapping[str, Callable[[], torch.Tensor]], skeleton: Skeleton, model: Any = None
    ) -> dict[str, torch.Tensor]:
        """Runs transformers' own conversion.

        Args:
            tensors: a function that makes or loads the tensor, for each of `sources`, by checkpoint key. An operation
                frees tensors as soon as it has used them.
            skeleton: the model that the result is for.
            model: stands in for the model in the operations; None for the model itself.

        Returns:
            The parameters that the conversion gives, by name.

        Raises:
            Exception: any exception of an operation on tensors that do not fit the operation.
        """
        if self.converter is None:
            return {self.target: tensors[self.sources[0][1].name]()}
        sources = [(pattern, entry.name, tensors[entry.name]) for pattern, entry in self.sources]
        return converted(self.converter, self.target, sources, model or skeleton.model, skeleton.model.config)


@dataclass(frozen=True)
class KeyPlan:
    """The assignment of all checkpoint tensors to parameters.

    Attributes:
        groups: the conversions by `ConversionGroup.target`.
        unused_keys: keys of checkpoint tensors that the model does not use; those of left out towers are not named.
        unexpected_keys: those among them that `from_pretrained` warns of.
    """

    groups: Mapping[str, ConversionGroup]
    unused_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]


def plan_keys(skeleton: Skeleton, tensors: Mapping[str, TensorEntry], keys: Iterable[str] | None = None) -> KeyPlan:
    """Groups checkpoint tensors by target parameter.

    Args:
        skeleton: the model.
        tensors: the checkpoint's tensors by key.
        keys: keys of the tensors that may belong to the model; None for all.

    Returns:
        The plan. `check_coverage` checks for missing parameters, this function does not.
    """
    table = ConversionTable(skeleton.model, skeleton.names, skeleton.conversions)
    groups: dict[str, ConversionGroup] = {}
    unused: list[str] = []
    unexpected: list[str] = []
    for key in in_stock_order(tensors if keys is None else keys):
        name, pattern, converter = table.target_of(key)
        if name in skeleton.state:
            groups.setdefault(name, ConversionGroup(name, converter)).sources.append((pattern, tensors[key]))
        elif name not in skeleton.names:
            unused.append(key)
            if not table.ignores(name):
                unexpected.append(key)
    return KeyPlan(groups, tuple(unused), tuple(unexpected))
