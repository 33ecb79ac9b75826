"""Computes log-probabilities from hidden states that are already computed, a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from zipmoe.model.stock.computed_body import computed_body

MAX_CHUNK_BYTES = 64 << 20
"""Most bytes of the fp32 logits of one chunk of rows."""


@dataclass(frozen=True, eq=False)
class PromptScores:
    """Natural log-probabilities at the places of all prompt tokens but the first, given all tokens before.

    Attributes:
        logprobs: of the prompt's own tokens.
        top_ids: the likeliest tokens of each place, best first, int64, shape (places, k).
        top_logprobs: their log-probabilities, fp32, shape (places, k).
    """

    logprobs: tuple[float, ...]
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    @property
    def top(self) -> list[list[tuple[int, float]]]:
        """The likeliest tokens of each place with their log-probabilities; empty for k = 0."""
        if not self.top_ids.shape[1]:
            return []
        ids, logprobs = self.top_ids.tolist(), self.top_logprobs.tolist()
        return [list(zip(*place, strict=True)) for place in zip(ids, logprobs, strict=True)]


def next_token_logprobs(
    model: PreTrainedModel, hidden_states: torch.Tensor, token_ids: torch.Tensor, top: int
) -> PromptScores:
    """Computes the log-probability of each token but the first, given all tokens before.

    The head is the family's own forward, so that scaled or biased heads are right. It runs on chunks of rows. Where
    bf16 linears are not row-invariant, a prompt of several chunks may differ from stock's single pass in the last bits.

    Args:
        model: a decoder-only model.
        hidden_states: output of the model's body, shape (1, tokens, hidden).
        token_ids: int64, shape (1, tokens).
        top: number of likeliest tokens of each place, at least 0.

    Cost: the head on all rows; memory for `MAX_CHUNK_BYTES` of fp32 logits, about three times over.
    """
    tokens = token_ids.shape[1]
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    chunk = max(4, MAX_CHUNK_BYTES // (4 * vocabulary))
    top = min(top, vocabulary)
    pieces, top_ids, top_logprobs = [torch.empty(0)], [torch.empty(0, top).long()], [torch.empty(0, top)]
    for begin in range(0, tokens - 1, chunk):
        end = min(begin + chunk, tokens)
        logits = _head_logits(model, hidden_states[:, begin:end], token_ids[:, begin:end])[0]
        targets = token_ids[0, begin + 1 : end + 1]
        logprobs = torch.log_softmax(logits[: len(targets)].float(), dim=-1)
        pieces.append(logprobs.gather(1, targets[:, None])[:, 0].cpu())
        best = torch.topk(logprobs, top)
        top_ids.append(best.indices.cpu())
        top_logprobs.append(best.values.cpu())
    return PromptScores(tuple(torch.cat(pieces).tolist()), torch.cat(top_ids), torch.cat(top_logprobs))


def _head_logits(model: PreTrainedModel, hidden_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    with computed_body(model, hidden_states):
        logits = model(input_ids=token_ids, use_cache=False, return_dict=True).logits
    assert isinstance(logits, torch.Tensor)
    return logits
