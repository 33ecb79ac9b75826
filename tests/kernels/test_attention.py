"""Both products of attention against their readable twins, byte for byte, on every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import attention_twin as twin
from tests.kernels.linear_twin import Bf16, Floats, round_to_bf16
from zipmoe.errors import InvalidRequest
from zipmoe.kernels.attention import (
    Contexts,
    HeadSizes,
    ValueOrder,
    attention_scores,
    attention_values,
    fours,
    is_native,
    token_pairs,
)
from zipmoe.kernels.backends import backends
from zipmoe.kernels.linear import Order, lanes, pairs

SCORE_ORDERS = (lanes(), pairs(32))
VALUE_ORDERS = (fours(), token_pairs(512), token_pairs(6))

Runs = list[tuple[int, int]]


@dataclass
class Drawn:
    """Blocks of keys and values, queries, and where contexts lie."""

    sizes: HeadSizes
    requests: list[Runs]
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.contexts = Contexts(self.requests, self.sizes.slots)
        self.heads = self.sizes.heads * self.sizes.groups
        self.block = self.bf16(self.sizes.heads, self.sizes.slots, self.sizes.numbers)
        self.queries = self.bf16(len(self.requests), self.heads, self.sizes.numbers)
        self.weights = self.generator.random(self.heads * self.contexts.tokens, np.float32) ** 4

    def bf16(self, *shape: int) -> Bf16:
        return round_to_bf16(self.generator.standard_normal(shape, np.float32))

    def tokens(self, request: int, head: int) -> Bf16:
        rows = [range(slot, slot + count) for slot, count in self.requests[request]]
        return self.block[head // self.sizes.groups][[row for run in rows for row in run]]

    def scores(self, order: Order, using: str | None, threads: int = 1) -> Floats:
        out = np.full(self.heads * self.contexts.tokens, np.nan, np.float32)
        attention_scores(
            *(self.queries, self.block, self.contexts, out, self.sizes, order),
            scaling=0.3,
            threads=threads,
            using=using,
        )
        return out

    def values(self, order: ValueOrder, using: str | None, threads: int = 1) -> Bf16:
        out = np.zeros_like(self.queries)
        attention_values(self.weights, self.block, self.contexts, out, self.sizes, order, threads=threads, using=using)
        return out

    def scores_of_twin(self, order: Order) -> Floats:
        pairs_of = [(request, head) for request in range(len(self.requests)) for head in range(self.heads)]
        return np.concatenate([twin.scores(self.queries[r, h], self.tokens(r, h), order, 0.3) for r, h in pairs_of])

    def values_of_twin(self, order: ValueOrder) -> Bf16:
        out = np.zeros_like(self.queries)
        begin = 0
        for request, length in enumerate(self.contexts.lengths):
            for head in range(self.heads):
                weights = self.weights[begin : begin + length]
                out[request, head] = twin.values(weights, self.tokens(request, head), order)
                begin += length
        return out


def scattered(length: int, begin: int = 0, page: int = 32) -> Runs:
    """A context in every other page, from the last one on; it begins within one."""
    pages = -(-length // page)
    runs = [(2 * (pages - 1 - index) * page, min(page, length - index * page)) for index in range(pages)]
    return [(runs[0][0] + begin, runs[0][1] - begin), *runs[1:]]


CASES = [
    pytest.param(Drawn(HeadSizes(2, 1, 64, 80), [[(3, 77)]]), id="one head each"),
    pytest.param(Drawn(HeadSizes(1, 4, 80, 230), [scattered(100)]), id="groups in pages"),
    pytest.param(Drawn(HeadSizes(2, 3, 96, 200), [[(0, 1)], scattered(70, begin=5), [(9, 2)], [(0, 39)]]), id="many"),
    pytest.param(Drawn(HeadSizes(1, 2, 128, 700), [[(1, 640)]]), id="blocks"),
    pytest.param(Drawn(HeadSizes(1, 1, 192, 40), [[(0, 33)]]), id="long keys"),
    pytest.param(Drawn(HeadSizes(1, 7, 37, 40), [[(0, 31)]]), id="odd numbers"),
]


@pytest.mark.parametrize("using", backends())
@pytest.mark.parametrize("order", SCORE_ORDERS, ids=str)
@pytest.mark.parametrize("drawn", CASES)
def test_scores_equal_the_twin(drawn: Drawn, order: Order, using: str) -> None:
    assert drawn.scores(order, using).tobytes() == drawn.scores_of_twin(order).tobytes()


@pytest.mark.parametrize("using", backends())
@pytest.mark.parametrize("order", VALUE_ORDERS, ids=str)
@pytest.mark.parametrize("drawn", CASES)
def test_values_equal_the_twin(drawn: Drawn, order: ValueOrder, using: str) -> None:
    assert drawn.values(order, using).tobytes() == drawn.values_of_twin(order).tobytes()


@pytest.mark.parametrize("order", VALUE_ORDERS, ids=str)
@pytest.mark.parametrize("exponent", [-133, -126, -120, 60, 126])
def test_backends_agree_on_tiny_and_huge_values(order: ValueOrder, exponent: int) -> None:
    drawn = Drawn(HeadSizes(1, 2, 64, 60), [[(0, 59)]])
    drawn.block = round_to_bf16(drawn.generator.standard_normal(drawn.block.shape) * 2.0**exponent)
    drawn.weights *= np.exp2(drawn.generator.integers(-30, 1, drawn.weights.shape)).astype(np.float32)
    wanted = drawn.values(order, "scalar").tobytes()
    assert all(drawn.values(order, using).tobytes() == wanted for using in backends())


@pytest.mark.parametrize("using", backends())
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_no_place_and_no_neighbour_changes_a_bit(using: str, data: st.DataObject) -> None:
    numbers, heads, groups = (data.draw(st.integers(1, most)) for most in (140, 3, 5))
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    slots = 220
    requests = [
        scattered(length) if data.draw(st.booleans()) else [(data.draw(st.integers(0, slots - length)), length)]
        for length in lengths
    ]
    drawn = Drawn(HeadSizes(heads, groups, numbers, slots), requests, seed=data.draw(st.integers(0, 99)))
    score_order, value_order = data.draw(st.sampled_from(SCORE_ORDERS)), data.draw(st.sampled_from(VALUE_ORDERS))
    assert drawn.scores(score_order, using, threads=2).tobytes() == drawn.scores_of_twin(score_order).tobytes()
    assert drawn.values(value_order, using, threads=2).tobytes() == drawn.values_of_twin(value_order).tobytes()


def test_the_scalar_backend_has_no_vectors() -> None:
    assert not any(is_native(order, "scalar") for order in VALUE_ORDERS)


@pytest.mark.parametrize("runs", [[], [(0, 0)], [(-1, 4)], [(8, 3)], [(0, 4), (9, 2)]])
def test_tokens_outside_the_block_are_refused(runs: Runs) -> None:
    with pytest.raises(InvalidRequest):
        Contexts([runs], 10)


@pytest.mark.parametrize("block", [0, -2, 7])
def test_a_block_of_tokens_is_whole_pairs(block: int) -> None:
    with pytest.raises(InvalidRequest, match="even"):
        token_pairs(block)


@pytest.mark.parametrize("name", ["queries", "block", "weights"])
def test_a_buffer_of_another_size_is_refused(name: str) -> None:
    drawn = Drawn(HeadSizes(1, 1, 8, 10), [[(0, 10)]])
    setattr(drawn, name, getattr(drawn, name).ravel()[:-1])
    with pytest.raises(InvalidRequest, match="bytes"):
        (drawn.scores(lanes(), None), drawn.values(fours(), None))


def test_a_result_over_an_input_is_refused() -> None:
    drawn = Drawn(HeadSizes(1, 1, 8, 10), [[(0, 10)]])
    with pytest.raises(InvalidRequest, match="overlaps"):
        attention_values(drawn.weights, drawn.block, drawn.contexts, drawn.block[0, 0], drawn.sizes, fours())
