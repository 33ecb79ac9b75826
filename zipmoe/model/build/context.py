"""Finds the number of tokens that a model can attend to."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig

UNBOUNDED_DEFAULT_TOKENS = 512
"""Limit of models with relative positions and no stated limit: the length that T5 and Switch were trained on."""

LARGEST_BELIEVED_TOKENS = 1 << 24
"""Larger limits of a tokenizer are ignored: tokenizers without a limit state 10**30."""


def context_tokens(config: PreTrainedConfig, path: Path) -> int:
    """Finds the length of the longest sequence that a model is meant for, in tokens.

    The first value that exists counts: the configuration's `max_position_embeddings`; the configuration's
    `n_positions` (T5's name of the same limit); the tokenizer's `model_max_length`, unless it is larger than
    `LARGEST_BELIEVED_TOKENS`; 512. Switch has relative positions and could compute longer sequences, but was trained
    on 512 tokens. Its limit holds for the prompt and for the answer separately.

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
