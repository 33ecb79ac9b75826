"""The mask of a grammar as one of stock's logits processors."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import LogitsProcessor

from zipmoe.model.text.grammar import GrammarProgress


class GrammarMask(LogitsProcessor):
    """Sets the scores of all tokens that a grammar does not allow to minus infinity."""

    def __init__(self, progress: GrammarProgress) -> None:
        """Masks by the place of an answer, which the caller advances."""
        self._progress = progress

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Masks the scores of the next token.

        Args:
            input_ids: tokens before; not read.
            scores: shape (1, vocabulary). Not changed.

        Raises:
            InvalidRequest: as for `GrammarProgress.allowed`.
        """
        allowed = self._progress.allowed()[: scores.shape[-1]]
        if (missing := scores.shape[-1] - len(allowed)) > 0:
            allowed = np.pad(allowed, (0, missing))
        return torch.where(torch.from_numpy(allowed), scores, -math.inf)  # type: ignore[return-value]
