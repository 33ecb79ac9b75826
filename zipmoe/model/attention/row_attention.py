"""Attends for single query rows by the kernels, where a self-test finds the bits of stock's eager code on this machine.

The self-test runs the module's own stock function and the kernels on the same drawn numbers. One comparison finds the
order in which torch sums. It also finds out whether the function is plain: no sinks, no cap on scores, no unknown
step. Where bits differ, stock's code computes.
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
from zipmoe.model.attention.softmax import softmax_of_contexts

Stock = Callable[..., torch.Tensor]
"""(module, query, keys, values, mask, **kwargs) -> output, shapes as in `transformers`' eager attention."""

POSITIONS = ("position_ids", "cache_position", "position_embeddings")
"""Arguments that models hand down to every attention function; queries and keys already contain the positions."""

MODULE_TOKENS = 40
"""Shortest context on which each module is compared with the kernels; the class is compared on many lengths."""


@dataclass(frozen=True)
class Method:
    """Summation orders of both products: queries with keys, weights with values."""

    scores: linear.Order
    values: ValueOrder

    @property
    def native(self) -> bool:
        """Whether this machine has vector kernels for both orders."""
        return linear.is_native(self.scores) and is_native(self.values)


ONE_BLOCK = linear.pairs(32)  # the kernels sum all numbers of a head as one block; the argument has no effect
METHODS = (
    Method(ONE_BLOCK, token_pairs(512)),
    Method(linear.lanes(), fours()),
    Method(ONE_BLOCK, token_pairs(1024)),
)


@dataclass(frozen=True)
class AttentionCase:
    """Conditions on which the bits may depend, apart from the numbers and the length of the context."""

    kind: type[nn.Module]
    heads: Heads
    scaling: float
    others: tuple[tuple[str, object], ...]
    """Further arguments of the attention function."""

    threads: int


class RowAttention:
    """Attends for one row of each request with stock's bits, or leaves the call to stock's code.

    Thread: one at a time.
    """

    def __init__(self, stock: Stock, methods: Sequence[Method] | None = None) -> None:
        """Starts without self-test results.

        Args:
            stock: attention function with the bits that are wanted.
            methods: candidates; by default all methods for which this machine has vector kernels.
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
        """Attends for each request over its own context.

        Args:
            module: stock's attention module.
            query: shape (1, query heads, requests, numbers).
            keys: the pool's block, shape (heads, slots, numbers).
            values: likewise.
            contexts: places of the tokens that each request sees.
            kwargs: arguments of stock's function other than the mask.

        Returns:
            bf16, shape (1, requests, query heads, numbers of a value); None where the kernels do not have stock's bits,
            or the contexts need different methods.

        Cost: one reading of the keys and values; the first call for a kind of context runs a self-test.
        """
        case = _case(module, query, keys, values, kwargs)
        method = None if case is None else self._known_method(case, contexts.lengths, module, kwargs)
        if case is None or method is None:
            return None
        return compute(query, keys, values, contexts, method, case.scaling, case.threads)

    def method(
        self,
        module: nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        length: int,
        kwargs: Mapping[str, Any],
    ) -> Method | None:
        """Returns the summation orders of a call with one request and a context of `length` tokens.

        The arguments are those of `__call__`. All lengths with equal `size_of` have the same orders.
        """
        case = _case(module, query, keys, values, kwargs)
        return None if case is None else self._known_method(case, (length,), module, kwargs)

    def _known_method(
        self, case: AttentionCase, lengths: Sequence[int], module: nn.Module, kwargs: Mapping[str, Any]
    ) -> Method | None:
        methods = {self._method(case, size_of(length), module, kwargs) for length in lengths}
        method = methods.pop()
        if method is None or methods:
            return None
        known = (module, case, method)
        if known not in self._plain:
            length = max(MODULE_TOKENS, *lengths)
            self._plain[known] = bool(self._matching([method], DRAWS, case, length, module, kwargs))
        return method if self._plain[known] else None

    def _method(self, case: AttentionCase, size: int, module: nn.Module, kwargs: Mapping[str, Any]) -> Method | None:
        """Returns the method for contexts of more than 2**(size - 1) and up to 2**size tokens; None if none fits."""
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


def size_of(length: int) -> int:
    """Returns the class of a context's length: above 2**(size - 1) and up to 2**size tokens."""
    return (length - 1).bit_length()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compares bits; `torch.equal` takes zeros of different sign for equal."""
    return a.shape == b.shape and torch.equal(a.view(torch.int16), b.view(torch.int16))


def _case(
    module: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kwargs: Mapping[str, Any]
) -> AttentionCase | None:
    """Returns the case of a call; None if the kernels cannot compute such a call."""
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
    """Attends by the kernels, with the softmax of `softmax_of_contexts` between the two products.

    Args:
        query: bf16 in host memory, shape (1, query heads, requests, numbers).
        keys: bf16 in host memory, shape (heads, slots, numbers), contiguous.
        values: likewise.
        contexts: places of the tokens that each request sees.
        method: summation orders.
        scaling: factor of the scores.
        threads: number of threads that compute, the caller's included.

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
    weights = softmax_of_contexts(scores, query_heads, contexts.lengths)
    out = query.new_empty((1, contexts.requests, query_heads, values.shape[2]))
    sizes = HeadSizes(heads, groups, values.shape[2], slots)
    run_values(weights.data_ptr(), values.data_ptr(), contexts, out.data_ptr(), sizes, method.values, threads)
    return out
