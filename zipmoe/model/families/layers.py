"""Chooses the few layers of a configuration that show each kind of its layers, and cuts every per-layer field to them.

A field is per layer if it is a list with one value a layer (`layer_types`, `num_attention_heads_per_layer`), a list of
layers (`mlp_only_layers`), a number of leading layers (`first_k_dense_replace`), or `per_layer_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]

LEAST_LAYERS = 3
_MOST_KINDS = 6
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_layers", "depth", "encoder_layers")
_LEADING = ("first_k_dense_replace", "num_dense_layers", "num_hash_layers")
_MEMBERS = ("mlp_only_layers", "moe_layers", "global_attn_indexes", "local_layer_ids")
_SOURCES = ("kv_source_layers",)


def _layer_count_name(fields: Mapping[str, Any]) -> str | None:
    """Finds the field that holds the number of layers; None if the configuration has no layers of its own."""
    return next((name for name in _LAYER_COUNTS if isinstance(fields.get(name), int)), None)


def cut_layers(fields: Fields, least: int) -> Fields:
    """Cuts a configuration to a few layers that show each kind of layer.

    Args:
        fields: the fields of a configuration, by name.
        least: least number of layers, if there are as many.

    Returns:
        The changed fields alone. Layers keep their order, and the first layer of each kind is kept.
    """
    name = _layer_count_name(fields)
    if name is None:
        # nemotron_h counts its layers by this list alone
        listed = fields.get("layers_block_type")
        if not isinstance(listed, list):
            return {}
        count = len(listed)
    else:
        count = fields[name]
    kinds = _kinds(fields, count)
    kept = _choose(kinds, count, least)
    changed = _cut(fields, count, kept)
    if name is not None:
        changed[name] = len(kept)
    return changed


def _kinds(fields: Fields, count: int) -> dict[str, list[Any]]:
    """Lists a value a layer for each per-layer field."""
    kinds: dict[str, list[Any]] = {}
    for name, value in fields.items():
        if name in _SOURCES and isinstance(value, list):
            kinds[name] = ["own" if source == layer else "shared" for layer, source in enumerate(value)]
        elif name in _MEMBERS and isinstance(value, list):
            kinds[name] = [layer in value for layer in range(count)]
        elif name in _LEADING and isinstance(value, int):
            kinds[name] = [layer < value for layer in range(count)]
        elif isinstance(value, list) and len(value) == count and count > 1:
            kinds[name] = [repr(item) for item in value]
    if step := fields.get("decoder_sparse_step"):
        kinds["decoder_sparse_step"] = [(layer + 1) % step == 0 for layer in range(count)]
    overrides = fields.get("per_layer_config")
    if overrides:
        by_layer = {int(layer): repr(sorted(changes.items())) for layer, changes in overrides.items()}
        kinds["per_layer_config"] = [by_layer.get(layer) for layer in range(count)]
    return kinds


def _choose(kinds: Mapping[str, list[Any]], count: int, least: int) -> list[int]:
    together = list(zip(*kinds.values(), strict=True)) if kinds else [()] * count
    if len(set(together)) <= _MOST_KINDS:
        kept = {together.index(kind) for kind in set(together)}
    else:
        kept = {values.index(value) for values in kinds.values() for value in set(values)}
    for layer in range(count):
        if len(kept) >= min(least, count):
            break
        kept.add(layer)
    return sorted(kept)


def _cut(fields: Fields, count: int, kept: list[int]) -> Fields:
    changed: Fields = {}
    place = {layer: index for index, layer in enumerate(kept)}
    for name, value in fields.items():
        if name in _SOURCES and isinstance(value, list):
            changed[name] = [place.get(value[layer], place[layer]) for layer in kept]
        elif name in _MEMBERS and isinstance(value, list):
            changed[name] = [place[layer] for layer in kept if layer in value]
        elif name in _LEADING and isinstance(value, int):
            changed[name] = sum(layer < value for layer in kept)
        elif isinstance(value, list) and len(value) == count and count > 1:
            changed[name] = [value[layer] for layer in kept]
    if (step := fields.get("decoder_sparse_step")) and step > 1:
        dense = {place[layer] for layer in kept if (layer + 1) % step}
        changed["mlp_only_layers"] = sorted(dense | set(changed.get("mlp_only_layers") or ()))
        changed["decoder_sparse_step"] = 1
    if overrides := fields.get("per_layer_config"):
        changed["per_layer_config"] = {
            place[int(layer)]: dict(v) for layer, v in overrides.items() if int(layer) in place
        }
    return changed
