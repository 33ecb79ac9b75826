"""Assigns checkpoint tensors to model parameters, by transformers' own conversion tables.

The assignment follows `convert_and_load_state_dict_in_model` of transformers 5.23 step by step, without loading a
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from zipmoe.model.checkpoint.shard import TensorEntry
from zipmoe.model.checkpoint.skeleton import Skeleton


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
        converter = deepcopy(self.converter)
        for pattern, entry in self.sources:
            # `add_tensor` accepts functions, although its signature asks for futures of tensors
            converter.add_tensor(self.target, entry.name, pattern, cast(Any, tensors[entry.name]))
        results = converter.convert(self.target, model=model or skeleton.model, config=skeleton.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in results.items()}


@dataclass(frozen=True)
class KeyPlan:
    """The assignment of all checkpoint tensors to parameters.

    Attributes:
        groups: the conversions by `ConversionGroup.target`.
        unexpected_keys: keys of checkpoint tensors that the model does not use; those of left out towers are not named.
    """

    groups: Mapping[str, ConversionGroup]
    unexpected_keys: tuple[str, ...]


def plan_keys(skeleton: Skeleton, tensors: Mapping[str, TensorEntry]) -> KeyPlan:
    """Groups checkpoint tensors by target parameter.

    Args:
        skeleton: the model.
        tensors: the checkpoint's tensors by key.

    Returns:
        The plan. `check_coverage` checks for missing parameters, this function does not.
    """
    mapping = get_model_conversion_mapping(skeleton.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = skeleton.model.base_model_prefix
    groups: dict[str, ConversionGroup] = {}
    unexpected: list[str] = []
    known = dict.fromkeys(skeleton.names, True)  # transformers asks whether the value is None
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = rename_source_key(key, [], [], prefix, known)
        if name not in skeleton.state:
            if name not in known and not _is_ignored(name, skeleton):
                unexpected.append(key)
            continue
        converter = converter_of[pattern] if pattern is not None else None
        groups.setdefault(name, ConversionGroup(name, converter)).sources.append((pattern or key, tensors[key]))
    return KeyPlan(groups, tuple(unexpected))


def _is_ignored(name: str, skeleton: Skeleton) -> bool:
    """Whether `from_pretrained` drops an unexpected key silently, for example keys of layers for training only."""
    patterns = set(skeleton.model._keys_to_ignore_on_load_unexpected or ()) | {r"rotary_emb\.inv_freq"}
    return any(re.search(pattern, name) for pattern in patterns)
