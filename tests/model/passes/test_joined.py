from __future__ import annotations

import random

import pytest
import torch

from tests.model.conftest import TwinOf
from tests.model.passes.test_ragged import DECODERS, prompt
from tests.model.tiny import VOCABULARY
from zipmoe.model.passes.joined import JoinedModel, JoinedRequest
from zipmoe.model.passes.sequence import Sequence


@pytest.mark.parametrize("family", DECODERS)
def test_joined_requests_have_the_bits_that_each_has_alone(family: str, twin_of: TwinOf) -> None:
    twin = twin_of(family)
    model = JoinedModel(twin.built)
    prompts = {"a": prompt(37, 1), "b": prompt(3, 2), "z": prompt(50, 3), "c": prompt(1, 4)}
    joins = {"a": 0, "b": 0, "z": 3, "c": 5}
    alone = {name: Sequence(twin.built) for name in prompts}
    running: dict[str, JoinedRequest] = {}
    chance = random.Random(7)
    for step in range(12):
        for name in [name for name, first in joins.items() if first == step]:
            running[name] = model.begin(prompts[name])
        answering = [name for name, each in running.items() if each.prompt is not None and not (name == "b" and step > 8)]
        if answering:
            tokens = [chance.randrange(3, VOCABULARY) for _ in answering]
            expected = [alone[name].step(token) for name, token in zip(answering, tokens, strict=True)]
            got = model.step([running[name] for name in answering], tokens)
            assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), step
        if unfinished := [each for each in running.values() if each.prompt is None]:
            model.advance(unfinished, 1)
        for name in [name for name, each in running.items() if each.prompt is not None and not alone[name].length]:
            result = running[name].prompt
            assert result is not None
            assert torch.equal(result.logits, alone[name].prefill(prompts[name]).logits), name
