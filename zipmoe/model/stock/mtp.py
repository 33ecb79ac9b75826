"""Constructs the layers for multi-token prediction (MTP) that transformers knows for a model: each drafts a token."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_layers import MtpModel
from transformers.utils.generic import ContextManagers

from zipmoe.errors import UnsupportedModel
from zipmoe.model.stock.conversion_tables import ConversionEntries
from zipmoe.model.stock.model_class import DTYPE
from zipmoe.system_error import first_line

WITHOUT_MTP = "pack without --with-mtp: drafts then come from the text alone"
"""Next step where MTP layers cannot be packed."""

_SHARED = ("embed_tokens", "shared_head", "rotary_emb")
"""Stock's names of the modules that MTP layers share with their model."""


def mtp_layer_count(config: PreTrainedConfig) -> int:
    """Returns the MTP layers that a configuration states; 0 if transformers knows none for its type."""
    return int(getattr(config.get_text_config(decoder=True), "num_mtp_layers", None) or 0)


def construct_mtp(model: PreTrainedModel) -> PreTrainedModel:
    """Constructs the MTP layers of a model on the meta device, as stock's `MtpModel`.

    Args:
        model: a decoder-only model that states MTP layers, on the meta device or not.

    Returns:
        The layers without the modules that they share with the model; `share_modules` sets those.

    Raises:
        UnsupportedModel: transformers refuses to construct MTP layers for this configuration.
    """
    contexts = MtpModel.get_init_context(DTYPE, False, False, None)
    try:
        with ContextManagers([*contexts, no_init_weights()]):
            mtp = MtpModel(model, mtp_layer_count(model.config))
    except Exception as error:  # stock expects fields that no check of the configuration asks for: translated here
        raise UnsupportedModel(
            f"transformers constructs no MTP layers for this {model.config.model_type} configuration: "
            f"{first_line(error)}",
            next_step=WITHOUT_MTP,
        ) from error
    for name in _SHARED:
        setattr(mtp, name, None)
    return mtp


def mtp_conversions(mtp: PreTrainedModel, model: PreTrainedModel) -> ConversionEntries:
    """Returns the renamings and conversions that lead from the keys of a checkpoint to the names in `mtp`."""
    return cast(MtpModel, mtp).get_weight_conversions(model)


def share_modules(mtp: PreTrainedModel, model: PreTrainedModel) -> None:
    """Sets the embeddings, the head and the rotary embedding of MTP layers, which are those of their model."""
    cast(MtpModel, mtp).tie_with_main_model(model)


def move_behind(mtp: PreTrainedModel, model: PreTrainedModel) -> None:
    """Makes the attention of MTP layers use the cache at the indices behind the layers of their model."""
    first = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    for module in mtp.modules():
        if isinstance(index := getattr(module, "layer_idx", None), int):
            module.layer_idx = first + index  # type: ignore[assignment]


def compute_mtp_layer(
    mtp: PreTrainedModel,
    layer: int,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    hidden_states: torch.Tensor,
    cache: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Computes an MTP layer.

    Args:
        mtp: the layers, with their shared modules.
        layer: index of the layer.
        token_ids: int64, shape (1, rows): the token after each row, or after the draft of the layer before.
        position_ids: positions of these tokens, likewise.
        hidden_states: output of the model's body or of the layer before, shape (1, rows, hidden).
        cache: stock's cache, or a pass in its place.
        kwargs: further arguments of the attention function.

    Returns:
        Shape (1, rows, hidden).
    """
    return cast(MtpModel, mtp).forward_layer(
        layer, hidden_states, position_ids, cache, input_ids=token_ids, use_cache=True, **kwargs
    )


def mtp_logits(mtp: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Computes the logits of the tokens that MTP layers draft, from the output of `compute_mtp_layer`."""
    logits: torch.Tensor = cast(MtpModel, mtp)._project_to_logits(hidden_states)
    return logits
