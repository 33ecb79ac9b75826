"""Changes to logits that a request asks for and that transformers has no processor for, in OpenAI's definition.

They take the place of the processors that a caller gives to stock's `generate(logits_processor=[...])`: after stock's
own processors of generation_config.json, and before temperature, top-k, top-p and the other filters. Among each other
they are applied in the order of this file.

Source: https://platform.openai.com/docs/api-reference/chat/create (logit_bias, presence_penalty, frequency_penalty).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LogitsProcessor


class LogitBias(LogitsProcessor):
    """Adds a number to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        """Keeps the numbers by token id; every id is in the vocabulary."""
        self._ids = torch.tensor(list(biases), dtype=torch.long)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns new scores, fp32, shape (rows, vocabulary)."""
        return scores.index_add(1, self._ids, self._biases.expand(scores.shape[0], -1).to(scores.dtype))


class GeneratedTokenPenalty(LogitsProcessor):
    """Lowers the logits of tokens that were generated before: `logit - frequency * count - presence * (count > 0)`.

    Tokens of the prompt do not count.
    """

    def __init__(self, context_tokens: int, presence: float, frequency: float) -> None:
        """Keeps the penalties.

        Args:
            context_tokens: number of tokens in front of the first generated token.
            presence: subtracted once.
            frequency: subtracted for each time that the token was generated.
        """
        self._context_tokens = context_tokens
        self._presence = presence
        self._frequency = frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns new scores, fp32, shape (rows, vocabulary)."""
        generated = input_ids[:, self._context_tokens :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0).to(scores.dtype)
