"""Builds the inputs of a plan from a store: sizes of experts, popularity, and costs of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zipmoe.arena.tensor_form import BF16, TensorForm, tensor_rooms
from zipmoe.planning.costs import Costs
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.memory_split import experts_per_token, slot_bytes
from zipmoe.planning.plan import PlanRequest
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.popularity import Popularity
from zipmoe.store.format.layout import ExpertSpec
from zipmoe.store.format.manifest import Manifest


def decode_layers(manifest: Manifest) -> list[int]:
    """Lists the MoE layers that every generated token passes: all layers outside an encoder."""
    return [index for index, layer in enumerate(manifest.layers) if not layer.module.startswith("encoder.")]


def uniform_popularity(manifest: Manifest) -> Popularity:
    """Returns the popularity before the first token: all experts of a layer are equally popular."""
    return Popularity([layer.expert_count for layer in manifest.layers])


def plan_request(
    manifest: Manifest,
    config: Mapping[str, Any],
    costs: Costs,
    popularity: Popularity,
    tensor_form: TensorForm = BF16,
) -> PlanRequest:
    """Builds the request for a plan.

    Args:
        manifest: manifest of the store.
        config: the model's config.json.
        costs: measured costs of this machine with the store.
        popularity: use statistics of all layers of the store.
        tensor_form: form of recovered experts.

    Cost: 20 microseconds an expert.
    """
    records = [manifest.record(key) for key in manifest.expert_keys()]
    e_bytes = [record.e_bytes for record in records]
    sm_bytes = [record.nbytes - record.e_bytes for record in records]
    tensor_bytes = sum(_tensor_bytes(layer.spec, tensor_form) * layer.expert_count for layer in manifest.layers)
    expert = ExpertBytes(sum(e_bytes) // len(records), sum(sm_bytes) // len(records), tensor_bytes // len(records))
    slots = PoolSizes(max(e_bytes), max(sm_bytes), slot_bytes(manifest, tensor_form).tensor)
    otherwise = experts_per_token(config)
    inclusion = [popularity.inclusion(layer, popularity.chosen(layer, otherwise)) for layer in decode_layers(manifest)]
    return PlanRequest(inclusion, costs, expert, slots)


def _tensor_bytes(spec: ExpertSpec, form: TensorForm) -> int:
    return tensor_rooms(spec, form)[-1].end
