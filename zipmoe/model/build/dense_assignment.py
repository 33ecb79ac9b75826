"""Assigns dense weights to a model on the meta device, and checks that all are there and unchanged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from zipmoe.errors import PACK_ANEW, CorruptData, NotFound, UnsupportedModel
from zipmoe.model.build.dense import DenseWeights, checksum
from zipmoe.model.build.dense_forms import DenseCompression
from zipmoe.model.checkpoint.skeleton import Skeleton


def assign_dense(
    model: PreTrainedModel, dense: DenseWeights, device: torch.device, compression: DenseCompression | None
) -> dict[str, set[int]]:
    """Assigns the dense weights in stock's dtypes, ties the parameters that stock ties, and returns the checksums.

    Each weight is compressed before the next one is read. It then has two checksums: a weight that is tied to another
    one may be replaced by bf16 rows.
    """
    skeleton = Skeleton(str(model.config.model_type), model)
    weights: dict[str, torch.Tensor] = {}
    sums: dict[str, set[int]] = {}
    for name, tensor in dense.items():
        wanted = skeleton.state.get(name)
        if wanted is None:
            continue
        if tensor.shape != wanted.shape:
            raise CorruptData(
                f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(wanted.shape)}", next_step=PACK_ANEW
            )
        kept = tensor.to(dtype=skeleton.dtype_of(name))
        del tensor
        sums[name] = {checksum(kept)}
        if compression is not None and compression.may_compress(name):
            kept = compression.kept(name, kept)
            sums[name].add(checksum(kept))
        weights[name] = kept.to(device)
    missing = set(skeleton.state) - set(weights)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights(missing_keys=missing, recompute_mapping=True)
    if missing:
        names = sorted(missing)
        raise NotFound(
            f"{len(names)} dense weights of {type(model).__name__} are missing, such as {', '.join(names[:3])}",
            next_step=PACK_ANEW,
        )
    return sums


def check_unchanged(model: PreTrainedModel, sums: Mapping[str, set[int]]) -> None:
    """Refuses a model in which the code of transformers has changed a weight since it was assigned."""
    state = model.state_dict()
    if changed := [name for name, wanted in sums.items() if checksum(state[name]) not in wanted]:
        raise UnsupportedModel(
            f"building {type(model).__name__} changes {len(changed)} weights of the store, such as {changed[0]}"
        )


def check_complete(model: PreTrainedModel) -> None:
    """Refuses a model with a weight or a buffer that has no value."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if unset := [name for name, tensor in tensors if tensor.is_meta]:
        raise NotFound(f"{len(unset)} weights have no value, such as {', '.join(unset[:3])}", next_step=PACK_ANEW)
    buffers = [item for item in model.named_non_persistent_buffers() if item[1].is_floating_point()]
    if unset := [name for name, tensor in buffers if bool(tensor.isnan().any())]:
        raise UnsupportedModel(f"transformers leaves {len(unset)} buffers unset, such as {', '.join(unset[:3])}")
