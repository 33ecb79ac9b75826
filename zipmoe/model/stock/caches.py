"""Makes the cache of a request as `generate` does."""

from __future__ import annotations

from transformers import Cache, DynamicCache, PreTrainedModel


def new_cache(model: PreTrainedModel) -> Cache | None:
    """Returns an empty cache for a decoder-only model; None for a model that makes a cache of its own kind itself."""
    if not type(model)._supports_default_dynamic_cache():  # type: ignore[attr-defined]
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))
