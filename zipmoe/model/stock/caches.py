"""Makes the cache of a request as `generate` does, and says what its layers keep."""

from __future__ import annotations

from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from zipmoe.errors import UnsupportedModel


def new_cache(model: PreTrainedModel) -> Cache | None:
    """Returns an empty cache for a decoder-only model; None for a model that makes a cache of its own kind itself."""
    if not type(model)._supports_default_dynamic_cache():  # type: ignore[attr-defined]
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def cached_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Returns the number of tokens that a query of each layer sees, its own included; None for the whole context.

    Args:
        config: configuration of a decoder-only model, or the text part of one.

    Raises:
        UnsupportedModel: a layer caches something other than keys and values.
    """
    layers = DynamicCache(config=config).layers
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedModel(f"a {type(layer).__name__} cannot be kept in pages")
    windows = tuple(layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in layers)
    return windows or (None,) * int(config.num_hidden_layers)
