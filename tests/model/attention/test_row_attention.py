"""Single rows attend with the bits of stock's eager code, or stock's code computes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeAttention

from zipmoe.kernels.attention import Contexts, fours, token_pairs
from zipmoe.kernels.linear import lanes
from zipmoe.model.attention.attention_draws import DRAWS, Heads, lengths_to_test
from zipmoe.model.attention.kv_pool import KvPlace
from zipmoe.model.attention.ragged_attention import attend_by_heads
from zipmoe.model.attention.row_attention import Method, RowAttention, compute
from zipmoe.serving.pages import PAGE_TOKENS, pages_of

SCALING = 0.0883
SLOTS = 2048
PLAIN = {"scaling": SCALING, "dropout": 0.0, "sliding_window": None}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@functools.cache
def stock_module(groups: int) -> nn.Module:
    module = Qwen3MoeAttention(Qwen3MoeConfig(hidden_size=8, head_dim=2, num_attention_heads=2), 0).eval()
    module.num_key_value_groups = groups
    return module


@functools.cache
def shared() -> RowAttention:
    """The self-test of a case runs once for all tests."""
    return RowAttention(attend_by_heads)


class RowPool:
    """Blocks full of numbers, and requests whose contexts are somewhere in them."""

    def __init__(self, heads: Heads, places: list[tuple[list[int], int]], begin: int = 0) -> None:
        generator = torch.Generator().manual_seed(len(places))
        self.module = stock_module(heads.groups)
        self.keys = torch.randn(heads.heads, SLOTS, heads.key_numbers, generator=generator).bfloat16()
        self.values = torch.randn(heads.heads, SLOTS, heads.value_numbers, generator=generator).bfloat16()
        self.query = torch.randn(1, heads.queries, len(places), heads.key_numbers, generator=generator).bfloat16()
        self.places = [KvPlace(pages, tokens, torch.device("cpu")) for pages, tokens in places]
        self.begin = begin

    def stock(self) -> torch.Tensor:
        each = [
            attend_by_heads(
                self.module,
                row.contiguous(),
                *(place.read(block, self.begin).contiguous() for block in (self.keys, self.values)),
                None,
                **PLAIN,
            )
            for row, place in zip(torch.split(self.query, 1, dim=2), self.places, strict=True)
        ]
        return torch.cat(each, dim=1)

    def native(self, rows: RowAttention | None = None) -> torch.Tensor | None:
        contexts = Contexts([place.runs(self.begin) for place in self.places], SLOTS)
        return (rows or shared())(self.module, self.query, self.keys, self.values, contexts, PLAIN)

    def check(self) -> None:
        native = self.native()
        assert native is None or same_bits(native, self.stock())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def adjacent(tokens: int, first: int = 0) -> tuple[list[int], int]:
    return list(range(first, first + pages_of(tokens))), tokens


def scattered(tokens: int) -> tuple[list[int], int]:
    return list(range(2 * pages_of(tokens), 0, -2)), tokens


HEADS = (Heads(16, 1, 128, 128), Heads(2, 8, 64, 64), Heads(4, 4, 80, 80), Heads(4, 1, 96, 96), Heads(8, 1, 192, 128))


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_every_length_has_the_bits_of_stock(heads: Heads) -> None:
    for tokens in (*range(1, 70), 95, 127, 128, 129, 200, 255, 257, 300, 383, 449, 511, 512, 513, 514, 600):
        RowPool(heads, [adjacent(tokens)]).check()


@pytest.mark.parametrize("heads", HEADS[:3], ids=str)
@pytest.mark.parametrize("begin", [0, 1, 31, 32, 45])
def test_pages_and_windows_have_the_bits_of_stock(heads: Heads, begin: int) -> None:
    RowPool(heads, [scattered(200)], begin).check()
    RowPool(heads, [adjacent(200, first=3), scattered(130), scattered(77)], begin).check()


@given(
    heads=st.sampled_from([Heads(2, 2, 64, 64), Heads(3, 1, 48, 32)]),
    tokens=st.lists(st.tuples(st.integers(33, 256), st.booleans()), min_size=1, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_requests_of_any_lengths_have_the_bits_that_each_has_alone(
    heads: Heads, tokens: list[tuple[int, bool]]
) -> None:
    RowPool(heads, [scattered(count) if apart else adjacent(count) for count, apart in tokens]).check()


@pytest.mark.parametrize("exponent", [-126, -60, 60])
def test_tiny_and_huge_values_have_the_bits_of_stock(exponent: int) -> None:
    pool = RowPool(Heads(4, 2, 64, 64), [adjacent(150)])
    pool.values *= 2.0**exponent
    pool.check()


@pytest.mark.parametrize("numbers", [64, 128])
def test_sums_that_cancel_have_the_bits_of_stock(numbers: int) -> None:
    heads = Heads(4, 1, numbers, numbers)
    for draw in DRAWS:
        for tokens in (70, 101, 530):
            query, keys, values = draw(heads, tokens)
            contexts = Contexts([[(0, tokens)]], tokens)
            native = shared()(stock_module(1), query, keys, values, contexts, PLAIN)
            stock = attend_by_heads(stock_module(1), query, keys[None], values[None], None, **PLAIN)
            assert native is None or same_bits(native, stock)


def torch_in(method: Method) -> Any:
    """A stock function that sums in the given orders, by the kernels."""

    def stock(_: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *__: Any, **___: Any) -> Any:
        contexts = Contexts([[(0, keys.shape[2])]], keys.shape[2])
        return compute(query, keys[0], values[0], contexts, method, SCALING, 1)

    return stock


KNOWN = (Method(lanes(), fours()), Method(lanes(), token_pairs(64)))


@pytest.mark.parametrize("method", KNOWN, ids=str)
def test_the_orders_of_this_machine_are_found(method: Method) -> None:
    pool = RowPool(Heads(4, 1, 64, 64), [adjacent(100)])
    native = pool.native(RowAttention(torch_in(method), KNOWN))
    assert native is not None
    contexts = Contexts([pool.places[0].runs()], SLOTS)
    assert same_bits(native, compute(pool.query, pool.keys, pool.values, contexts, method, SCALING, 1))


def test_an_order_that_is_not_known_leaves_it_to_stock() -> None:
    pool = RowPool(Heads(4, 1, 64, 64), [adjacent(100)])
    assert pool.native(RowAttention(torch_in(KNOWN[1]), KNOWN[:1])) is None


def test_an_order_that_changes_between_two_powers_of_two_leaves_it_to_stock() -> None:
    def stock(module: nn.Module, query: torch.Tensor, keys: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        return torch_in(KNOWN[keys.shape[2] > 100])(module, query, keys, *rest, **kwargs)

    rows = RowAttention(stock, KNOWN)
    heads = Heads(4, 1, 64, 64)
    known = [RowPool(heads, [adjacent(tokens)]).native(rows) is not None for tokens in (60, 90, 120, 150)]
    assert known == [True, False, False, True]


def with_sinks(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.nn.functional.pad(scores, (0, 1)), -1)[..., :-1]


def capped(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.tanh(scores / 50) * 50, -1)


@pytest.mark.parametrize("softmax", [with_sinks, capped])
def test_attention_that_is_not_plain_is_left_to_stock(softmax: Any) -> None:
    def stock(_: nn.Module, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *__: Any, **___: Any) -> Any:
        scores = (query @ keys.transpose(2, 3) * SCALING).float()
        return (softmax(scores).bfloat16() @ values).transpose(1, 2).contiguous()

    assert RowPool(Heads(8, 1, 64, 64), [adjacent(100)]).native(RowAttention(stock)) is None


def test_a_module_that_is_not_like_its_class_is_left_to_stock() -> None:
    odd = Qwen3MoeAttention(Qwen3MoeConfig(hidden_size=8, head_dim=2, num_attention_heads=2), 1).eval()
    plain = torch_in(KNOWN[0])

    def stock(module: nn.Module, *rest: Any, **kwargs: Any) -> Any:
        return plain(module, *rest, **kwargs) * (2 if module is odd else 1)

    rows = RowAttention(stock, KNOWN)
    pool = RowPool(Heads(4, 1, 64, 64), [adjacent(100)])
    assert pool.native(rows) is not None
    pool.module = odd
    assert pool.native(rows) is None


@pytest.mark.parametrize("extra", [{"s_aux": torch.zeros(4)}, {"scaling": None}])
def test_arguments_that_are_not_understood_leave_it_to_stock(extra: dict[str, Any]) -> None:
    pool = RowPool(Heads(4, 1, 64, 64), [adjacent(100)])
    contexts = Contexts([pool.places[0].runs()], SLOTS)
    rows = RowAttention(torch_in(KNOWN[0]), KNOWN)
    assert rows(pool.module, pool.query, pool.keys, pool.values, contexts, {**PLAIN, **extra}) is None


@pytest.mark.parametrize("size", range(12))
def test_lengths_to_test_cover_their_range(size: int) -> None:
    lengths = lengths_to_test(size)
    assert lengths[0] == (1 << size >> 1) + 1 and lengths[-1] == 1 << size
    if 1 << size in (128, 256, 512):
        assert {length % PAGE_TOKENS for length in lengths} == set(range(PAGE_TOKENS))
