"""Where the peers get experts from: the same bytes, whichever way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.peers.systems.lru_experts import READ_AT_ONCE, LruExperts
from benchmarks.peers.systems.mapped_experts import MappedExperts, ResidentExperts, in_one_piece
from tests.model.hub import bytes_of, read
from zipmoe.errors import BudgetInfeasible
from zipmoe.model.checkpoint.catalogue import Catalogue
from zipmoe.model.experts.provider import ExpertProvider
from zipmoe.types import ExpertKey

MAKE: dict[str, Callable[[Catalogue], ExpertProvider]] = {
    "mapped": lambda source: MappedExperts(source.layers),
    "resident": lambda source: ResidentExperts(source.layers),
    "lru": lambda source: LruExperts(source.layers, READ_AT_ONCE),
}


def test_a_matrix_that_two_shards_share_is_among_those_that_are_tried(source: Catalogue) -> None:
    matrices = [matrix for layer in source.layers for expert in layer.experts for matrix in expert]
    assert any(in_one_piece(matrix) is None for matrix in matrices)
    assert sum(in_one_piece(matrix) is None for matrix in matrices) < len(matrices) / 10


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_experts_are_the_checkpoints_own_bytes(source: Catalogue, make: Callable[[Catalogue], ExpertProvider]) -> None:
    provider = make(source)
    for _ in range(2):  # the second time some are held, others have been lost
        for layer in range(len(source.layers)):
            found = 0
            for expert, matrices, _ in provider.experts(layer, dict.fromkeys(range(8), 1)):
                found += 1
                for index, matrix in enumerate(matrices):
                    assert bytes_of(matrix) == read(source.layers[layer].experts[expert][index].pieces)
            assert found == 8


def test_what_was_used_last_is_not_read_again(source: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = LruExperts(source.layers, READ_AT_ONCE)
    read: list[ExpertKey] = []
    inner = provider._read
    monkeypatch.setattr(provider, "_read", lambda keys: (read.extend(keys), inner(keys)))
    for experts in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 3]):
        list(provider.experts(0, dict.fromkeys(experts, 1)))
    read.clear()
    list(provider.experts(1, {5: 1, 6: 1}))  # 1 and 2 of layer 0 make room
    list(provider.experts(0, {0: 1, 3: 1, 4: 1}))
    assert read == [ExpertKey(1, 5), ExpertKey(1, 6)]
    list(provider.experts(0, {1: 1}))
    assert read[2:] == [ExpertKey(0, 1)]


def test_too_few_slots_are_refused(source: Catalogue) -> None:
    with pytest.raises(BudgetInfeasible, match="7 slots"):
        LruExperts(source.layers, 7)
