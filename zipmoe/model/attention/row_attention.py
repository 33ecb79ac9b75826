"""Attention of single rows by the kernels, where a self-test finds that they have the bits of stock's eager code here.

The test runs stock's own function, of the very module, on drawn numbers beside the kernels: so it finds out in one go
in which order torch sums, and whether the function is plain (no sinks, no cap on scores, nothing that we do not know
of). Where bits differ, stock's code goes on computing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zipmoe.kernels import linear
from zipmoe.kernels.attention import (
    Contexts,
    HeadSizes,
    ValueOrder,
    fours,
    is_native,
    run_scores,
    run_values,
    token_pairs,
)
from zipmoe.model.attention.attention_draws import DRAWS, Draw, Heads, draws_of, lengths_to_test

Stock = Callable[..., torch.Tensor]
"""(module, query, keys, values, mask, **kwargs) -> output, shapes as in `transformers`' eager attention."""

POSITIONS = ("position_ids", "cache_position", "position_embeddings")
"""Tensors that models hand down to every attention function; the queries and keys hold them already."""

MODULE_TOKENS = 40
"""Every module is compared with the kernels on so many tokens or more, its class on many lengths."""


@dataclass(frozen=True)
class Method:
    """The orders of both products."""

    scores: linear.Order
    values: ValueOrder

    @property
    def native(self) -> bool:
        """Whether this machine has vector kernels for it."""
        return linear.is_native(self.scores) and is_native(self.values)


ONE_BLOCK = linear.pairs(32)  # the kernels make one block of all numbers of a head, whatever it says here
METHODS = (
    Method(ONE_BLOCK, token_pairs(512)),
    Method(linear.lanes(), fours()),
    Method(ONE_BLOCK, token_pairs(1024)),
)


@dataclass(frozen=True)
class AttentionCase:
    """All that the bits may depend on, beside numbers and the length of the context."""

    kind: type[nn.Module]
    heads: Heads
    scaling: float
    others: tuple[tuple[str, object], ...]
    """Further arguments of the attention function."""

    threads: int


class RowAttention:
    """Computes attention of one row a request with the bits of stock, or leaves it to stock.

    Thread: one at a time.
    """

    def __init__(self, stock: Stock, methods: Sequence[Method] | None = None) -> None:
        """Knows nothing yet.

        Args:
            stock: what to be equal to.
            methods: the candidates; by default all that this machine has fast kernels for.
        """
        self._stock = stock
        self._methods = [method for method in METHODS if method.native] if methods is None else list(methods)
        self._known: dict[tuple[AttentionCase, int], Method | None] = {}
        self._plain: dict[tuple[nn.Module, AttentionCase, Method], bool] = {}

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        contexts: Contexts,
        kwargs: Mapping[str, Any],
    ) -> torch.Tensor | None:
        """Attends, each request to its own context.

        Args:
            module: stock's attention module.
            query: shape (1, query heads, requests, numbers).
            keys: the pool's block, shape (heads, slots, numbers).
            values: the same.
            contexts: where the tokens are that each request sees.
            kwargs: what stock's function takes beside a mask.

        Returns:
            bf16, shape (1, requests, query heads, numbers of a value); None where the kernels do not have stock's bits.

        Cost: one reading of the keys and values; the first call of a kind of context runs a self-test.
        """
        case = _case(module, query, keys, values, kwargs)
        if case is None:
            return None
        methods = {self._method(case, (length - 1).bit_length(), module, kwargs) for length in contexts.lengths}
        method = methods.pop()
        if method is None or methods:
            return None
        known = (module, case, method)
        if known not in self._plain:
            length = max(MODULE_TOKENS, *contexts.lengths)
            self._plain[known] = bool(self._matching([method], DRAWS, case, length, module, kwargs))
        if not self._plain[known]:
            return None
        return compute(query, keys, values, contexts, method, case.scaling, case.threads)

    def _method(self, case: AttentionCase, size: int, module: nn.Module, kwargs: Mapping[str, Any]) -> Method | None:
        """The method for contexts of more than 2**(size - 1) and up to 2**size tokens."""
        if (case, size) not in self._known:
            left = self._methods
            for length in lengths_to_test(size):
                if not left:
                    break
                left = self._matching(left, draws_of(length, size), case, length, module, kwargs)
            self._known[case, size] = left[0] if left else None
        return self._known[case, size]

    def _matching(
        self,
        methods: list[Method],
        draws: Sequence[Draw],
        case: AttentionCase,
        length: int,
        module: nn.Module,
        kwargs: Mapping[str, Any],
    ) -> list[Method]:
        contexts = Contexts([[(0, length)]], length)
        for draw in draws:
            if not methods:
                break
            query, keys, values = draw(case.heads, length)
            wanted = self._stock(module, query, keys[None], values[None], None, **kwargs)
            methods = [
                method
                for method in methods
                if _same_bits(compute(query, keys, values, contexts, method, case.scaling, case.threads), wanted)
            ]
        return methods


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Unlike `torch.equal`, it tells zeros of different sign apart."""
    return a.shape == b.shape and torch.equal(a.view(torch.int16), b.view(torch.int16))


def _case(
    module: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kwargs: Mapping[str, Any]
) -> AttentionCase | None:
    """The case of a call; None if the kernels cannot compute it at all."""
    tensors = (query, keys, values)
    if not all(each.dtype is torch.bfloat16 and each.is_cpu for each in tensors) or torch.is_grad_enabled():
        return None
    if not (keys.is_contiguous() and values.is_contiguous()) or query.shape[0] != 1 or module.training:
        return None
    scaling = kwargs.get("scaling")
    others = tuple((name, each) for name, each in kwargs.items() if name not in POSITIONS and name != "scaling")
    if not isinstance(scaling, float) or not all(isinstance(each, int | float | str | None) for _, each in others):
        return None
    heads = Heads(keys.shape[0], query.shape[1] // keys.shape[0], keys.shape[2], values.shape[2])
    if query.shape[1] != heads.queries or query.shape[3] != heads.key_numbers:
        return None
    return AttentionCase(type(module), heads, scaling, others, torch.get_num_threads())


def compute(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    contexts: Contexts,
    method: Method,
    scaling: float,
    threads: int,
) -> torch.Tensor:
    """Attends by the kernels, with torch's softmax between the two products.

    Args:
        query: bf16 in host memory, shape (1, query heads, requests, numbers).
        keys: bf16 in host memory, shape (heads, slots, numbers), contiguous.
        values: the same.
        contexts: where the tokens are that each request sees.
        method: the orders of the sums.
        scaling: of the scores.
        threads: that compute, this one included.

    Returns:
        bf16, shape (1, requests, query heads, numbers of a value).

    Raises:
        ResourceExhausted: as `zipmoe.kernels.attention.attention_scores`.
    """
    heads, slots, numbers = keys.shape
    query_heads = query.shape[1]
    groups = query_heads // heads
    rows = query.transpose(1, 2).contiguous()
    scores = torch.empty(query_heads * contexts.tokens)
    run_scores(
        *(rows.data_ptr(), keys.data_ptr(), contexts, scores.data_ptr()),
        *(HeadSizes(heads, groups, numbers, slots), method.scores, scaling, threads),
    )
    weights = torch.empty_like(scores)
    begin = 0
    for length in contexts.lengths:
        end = begin + query_heads * length
        torch.softmax(scores[begin:end].view(-1, length), -1, out=weights[begin:end].view(-1, length))
        begin = end
    out = query.new_empty((1, contexts.requests, query_heads, values.shape[2]))
    sizes = HeadSizes(heads, groups, values.shape[2], slots)
    run_values(weights.data_ptr(), values.data_ptr(), contexts, out.data_ptr(), sizes, method.values, threads)
    return out
