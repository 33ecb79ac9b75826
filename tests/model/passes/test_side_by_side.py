from __future__ import annotations

import random

import pytest
import torch

from tests.model.conftest import TwinOf
from tests.model.tiny import VOCABULARY
from zipmoe.errors import UnsupportedModel
from zipmoe.model.passes.sequence import Sequence
from zipmoe.model.passes.side_by_side import SideBySide


def prompt(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCABULARY) for _ in range(length)]


def test_switch_answers_side_by_side_have_the_bits_they_have_alone(twin_of: TwinOf) -> None:
    twin = twin_of("switch_transformers")
    side = SideBySide(twin.built, twin.linears)
    prompts = [prompt(length, length) for length in (23, 5, 40, 1)]
    alone, together = ([Sequence(twin.built) for _ in prompts] for _ in range(2))
    for sequences in (alone, together):
        for sequence, ids in zip(sequences, prompts, strict=True):
            sequence.prefill(ids)
    chance = random.Random(0)
    asked = 0
    for step in range(24):
        members = [index for index in range(4) if step >= 3 * index]  # they join one after the other
        tokens = [chance.randrange(3, VOCABULARY) for _ in members]
        expected = [alone[index].step(token) for index, token in zip(members, tokens, strict=True)]
        twin.provider.requests.clear()
        got = side.step([together[index] for index in members], tokens)
        asked = max(asked, len(twin.provider.requests))
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), step
    assert asked == 2, "one request of each sparse layer of the decoder"
    assert [each.length for each in alone] == [each.length for each in together]


def test_a_step_that_fails_appends_to_no_sequence(twin_of: TwinOf) -> None:
    twin = twin_of("switch_transformers")
    side = SideBySide(twin.built, twin.linears)
    sequences = [Sequence(twin.built) for _ in range(2)]
    for seed, sequence in enumerate(sequences):
        sequence.prefill(prompt(9, seed))
    twin.provider.arrange = lambda ids: [][ids[0]]
    with pytest.raises(IndexError):
        side.step(sequences, [5, 6])
    twin.provider.arrange = list
    got = side.step(sequences, [5, 6])
    fresh = Sequence(twin.built)
    fresh.prefill(prompt(9, 0))
    assert torch.equal(got[0], fresh.step(5))
    assert sequences[0].length == 2


def test_other_families_are_refused(twin_of: TwinOf) -> None:
    twin = twin_of("qwen2_moe")
    with pytest.raises(UnsupportedModel, match="qwen2_moe are not computed side by side"):
        SideBySide(twin.built, twin.linears)
