"""Chooses how many tokens the KV cache holds, where the operator has not: a longer context leaves less to experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zipmoe.serving.pages import PAGE_TOKENS

FEWEST_TOKENS: Final = 4096
"""Tokens that are always cached, and the default where nothing is planned."""

MOST_LOSS_RATIO: Final = 0.05
"""Share of the time per token that a longer context may cost."""


@dataclass(frozen=True)
class KvOption:
    """A size of the KV cache and the speed that is forecast with it.

    Attributes:
        tokens: tokens of KV cache over all running requests.
        nbytes: bytes of that.
        tpot_s: forecast time per token; None if the budget does not hold the cache.
        loss_ratio: share of time per token that is lost to the smallest cache; None likewise.
    """

    tokens: int
    nbytes: int
    tpot_s: float | None
    loss_ratio: float | None

    @property
    def is_affordable(self) -> bool:
        """Whether the loss is small enough for a default."""
        return self.loss_ratio is not None and self.loss_ratio <= MOST_LOSS_RATIO


def context_of(config: Mapping[str, Any]) -> int:
    """Returns the context of a model, from its configuration of text; 0 if it tells none."""
    lengths = (config.get(name) for name in ("max_position_embeddings", "n_positions"))
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)


def kv_options(
    context_tokens: int, nbytes: Callable[[int], int], tpot_s: Callable[[int], float | None]
) -> list[KvOption]:
    """Forecasts the speed for sizes of the cache from `FEWEST_TOKENS` to the context, each twice the one before.

    Args:
        context_tokens: context of the model.
        nbytes: computes the bytes of a number of tokens.
        tpot_s: forecasts the time per token with a number of cached tokens; None if the budget does not hold them.
    """
    largest = max(FEWEST_TOKENS, -(-context_tokens // PAGE_TOKENS) * PAGE_TOKENS)
    sizes = [FEWEST_TOKENS]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    options: list[KvOption] = []
    for tokens in sizes:
        seconds = tpot_s(tokens)
        least = options[0].tpot_s if options else seconds
        loss = None if seconds is None or least is None else seconds / least - 1
        options.append(KvOption(tokens, nbytes(tokens), seconds, loss))
    return options


def affordable_tokens(options: Sequence[KvOption]) -> int:
    """Returns the largest size whose loss, and that of all smaller sizes, is small enough."""
    chosen = FEWEST_TOKENS
    for option in options:
        if not option.is_affordable:
            break
        chosen = option.tokens
    return chosen
