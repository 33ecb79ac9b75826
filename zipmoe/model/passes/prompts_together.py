"""Prompts that go through the layers together, each by stock's own calls, and ask for every expert once.

Each prompt's layer runs as a coroutine (a greenlet: stock's forward is no generator, and torch's modes belong to the
thread). It stops where its routed experts are called; when all have come there, the calls are computed as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from greenlet import getcurrent, greenlet
from transformers import PreTrainedModel

from zipmoe.model.attention.ragged_attention import ragged_attention
from zipmoe.model.experts.routed_experts import Call, RoutedExperts
from zipmoe.model.passes.prompt_pass import PromptPass


class _Prompt(greenlet):
    """One prompt on its way through a layer."""


class PromptsTogether:
    """Computes prompts of one model layer by layer.

    Thread: one at a time per model.
    """

    def __init__(self, model: PreTrainedModel, experts: Sequence[RoutedExperts]) -> None:
        """Has the model's routed experts offer their calls."""
        self._model = model
        for each in experts:
            each.meet_by(_meet)

    def advance(self, prompts: Sequence[PromptPass], layers: int) -> None:
        """Computes the next layers of each prompt that has some left; they share experts where they are equally far.

        Args:
            prompts: at least one.
            layers: how many, at least 1.

        Raises:
            ZipMoeError: the provider's; then all of these passes are over.
        """
        if len(prompts) == 1:
            prompts[0].advance(layers)
            return
        with torch.inference_mode(), ragged_attention(self._model):
            for _ in range(layers):
                _advance_by_one([prompt for prompt in prompts if prompt.layers_left])


def _meet(experts: RoutedExperts, call: Call) -> bool:
    """Hands a call of one of several prompts to whoever advances them; it is computed when this returns."""
    current = getcurrent()
    if not isinstance(current, _Prompt):
        return False
    assert current.parent is not None
    current.parent.switch(experts, call)
    return True


def _advance_by_one(prompts: Sequence[PromptPass]) -> None:
    """Computes a layer of each."""
    running = [_Prompt(prompt.compute) for prompt in prompts]
    try:
        arrived = [(each, each.switch(1)) for each in running]
        while met := [(each, *where) for each, where in arrived if not each.dead]:
            for experts in dict.fromkeys(where for _, where, _ in met):
                experts.compute([call for _, where, call in met if where is experts])
            arrived = [(each, each.switch()) for each, _, _ in met]
    finally:
        for each in running:
            each.throw()  # ends those that still wait, after an error; harmless to the others
