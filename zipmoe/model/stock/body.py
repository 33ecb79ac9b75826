"""Finds the module of a decoder-only model that holds the layers, also inside a multimodal model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from zipmoe.errors import UnsupportedModel


def text_body(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the module with the embeddings, the layers and the last norm; its `layers` is a ModuleList.

    Raises:
        UnsupportedModel: the layers are not where transformers' decoders have them.
    """
    body: PreTrainedModel = model.get_decoder()  # type: ignore[no-untyped-call]
    if not isinstance(getattr(body, "layers", None), nn.ModuleList):
        raise UnsupportedModel(f"{type(body).__name__} has no list of layers")
    return body
