"""Applies transformers' conversion tables, which say which checkpoint tensors make which parameters of a model.

The assignment follows `convert_and_load_state_dict_in_model` of transformers 5.23 step by step, without loading a
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from transformers import PreTrainedModel, WeightConverter
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

ConversionEntries: TypeAlias = Sequence[WeightTransform]
"""Entries of transformers' conversion tables: renamings, and conversions of tensors."""


class KeyTarget(NamedTuple):
    """The part of a checkpoint tensor in the conversion tables.

    Attributes:
        parameter: name of the parameter, which the model may lack; of the first one if the conversion gives several.
        pattern: the pattern of the conversion's input that matches the key; without a conversion, the key.
        converter: the conversion; None if the tensor only changes its name.
    """

    parameter: str
    pattern: str
    converter: WeightConverter | None


class ConversionTable:
    """The renamings and conversions that `from_pretrained` uses for a model."""

    def __init__(
        self, model: PreTrainedModel, names: Collection[str], entries: ConversionEntries | None = None
    ) -> None:
        """Reads the tables.

        Args:
            model: the model, on any device.
            names: the parameters and persistent buffers of the model and of its left out towers.
            entries: the renamings and conversions; None for those of the model's class.
        """
        entries = get_model_conversion_mapping(model) if entries is None else entries
        self._renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
        self._converter_of = {pattern: each for each in self._converters for pattern in each.source_patterns}
        self._prefix = model.base_model_prefix
        self._names = dict.fromkeys(names, True)  # transformers asks whether the value is None
        ignored = set(model._keys_to_ignore_on_load_unexpected or ()) | {r"rotary_emb\.inv_freq"}
        self._ignored = [re.compile(pattern) for pattern in ignored]

    def target_of(self, key: str) -> KeyTarget:
        """Finds the parameter and the conversion of a checkpoint tensor; conversions are the same object each time."""
        name, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self._names)
        if name not in self._names and key in self._names:
            name, pattern = rename_source_key(key, [], [], self._prefix, self._names)
        return KeyTarget(name, pattern or key, None if pattern is None else self._converter_of[pattern])

    def ignores(self, name: str) -> bool:
        """Whether `from_pretrained` drops an unexpected key silently, for example keys of layers for training only."""
        return any(pattern.search(name) for pattern in self._ignored)


def in_stock_order(names: Iterable[str]) -> list[str]:
    """Sorts names of tensors as transformers does before it converts or writes them: numbers by value."""
    return sorted(names, key=dot_natural_key)


def converted(
    converter: WeightConverter,
    parameter: str,
    sources: Iterable[tuple[str, str, Callable[[], torch.Tensor]]],
    model: Any,
    config: Any,
) -> dict[str, torch.Tensor]:
    """Runs a conversion on a copy of its entry in the table.

    Args:
        converter: the conversion.
        parameter: the parameter, or the first of several.
        sources: pattern, checkpoint key and a function that makes the tensor, of each input in `in_stock_order`. An
            operation frees tensors as soon as it has used them.
        model: the model, or a stand-in with `get_parameter`.
        config: configuration of the model.

    Returns:
        The parameters that the conversion gives, by name.

    Raises:
        Exception: any exception of an operation on tensors that do not fit the operation.
    """
    collecting = deepcopy(converter)
    for pattern, key, make in sources:
        # `add_tensor` accepts functions, although its signature asks for futures of tensors
        collecting.add_tensor(parameter, key, pattern, cast(Any, make))
    results = collecting.convert(parameter, model=model, config=config)
    return {name: value[0] if isinstance(value, list) else value for name, value in results.items()}


def checkpoint_tensors(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turns a state dict into the tensors that `save_pretrained` writes, by the tables in reverse.

    Args:
        model: the model.
        state: tensors by name, also on the meta device.
    """
    return dict(revert_weight_conversion(model, dict(state)))
