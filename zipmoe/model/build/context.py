"""How many tokens a model can attend to."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig

UNBOUNDED_DEFAULT_TOKENS = 512
"""For models with relative positions and no stated limit: what T5 and Switch were trained on."""

LARGEST_BELIEVED_TOKENS = 1 << 24
"""Tokenizers without a limit state 10**30."""


def context_tokens(config: PreTrainedConfig, path: Path) -> int:
    """Finds the longest sequence that a model is meant for.

    In this order: the configuration's `max_position_embeddings`; its `n_positions` (T5's name for it); the tokenizer's
    `model_max_length`, if it is one; 512. Switch has relative positions and could run on, but was trained on 512; the
    limit holds for its prompt and for its answer, each on its own.

    Args:
        config: the model's configuration.
        path: the directory with the tokenizer's files.
    """
    text_config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(text_config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    try:
        limit = json.loads((path / "tokenizer_config.json").read_bytes()).get("model_max_length")
    except (OSError, ValueError, AttributeError):
        limit = None
    if isinstance(limit, int) and 0 < limit < LARGEST_BELIEVED_TOKENS:
        return limit
    return UNBOUNDED_DEFAULT_TOKENS
