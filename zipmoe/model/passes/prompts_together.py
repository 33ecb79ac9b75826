"""Takes several prompts through the layers together, each by stock's own calls; a layer asks for each expert once.

The layer of each prompt runs as a coroutine. The coroutine is a greenlet, since stock's forward is no generator and
torch's modes belong to the thread. Each coroutine stops at the call of its routed experts. When all coroutines have
stopped, the calls are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from greenlet import getcurrent, greenlet
from transformers import PreTrainedModel

from zipmoe.model.attention.ragged_attention import ragged_attention
from zipmoe.model.experts.routed_experts import Call, RoutedExperts
from zipmoe.model.passes.prompt_pass import PromptPass
from zipmoe.model.stock.body import text_body


class _Prompt(greenlet):
    """Coroutine that computes the next layer of a prompt."""


class PromptsTogether:
    """Computes prompts of one model layer by layer.

    Thread: one at a time per model.
    """

    def __init__(self, model: PreTrainedModel, experts: Sequence[RoutedExperts]) -> None:
        """Makes the model's routed experts offer each call to the coroutines."""
        self._model = model
        for each in experts:
            each.meet_by(_meet)

    def advance(self, prompts: Sequence[PromptPass], layers: int) -> None:
        """Computes the next layers of each unfinished prompt; prompts at the same layer share the fetched experts.

        Args:
            prompts: at least one prompt.
            layers: number of layers, at least 1.

        Raises:
            ZipMoeError: error of the provider; all these passes have then failed.
        """
        if len(prompts) == 1:
            prompts[0].advance(layers)
            return
        with torch.inference_mode(), ragged_attention(text_body(self._model)):
            for _ in range(layers):
                _advance_by_one([prompt for prompt in prompts if prompt.layers_left])


def _meet(experts: RoutedExperts, call: Call) -> bool:
    """Suspends a prompt's coroutine until `_advance_by_one` has computed the call; False where none runs."""
    current = getcurrent()
    if not isinstance(current, _Prompt):
        return False
    assert current.parent is not None
    current.parent.switch(experts, call)
    return True


def _advance_by_one(prompts: Sequence[PromptPass]) -> None:
    """Computes the next layer of each prompt."""
    running = [_Prompt(prompt.compute) for prompt in prompts]
    try:
        arrived = [(each, each.switch(1)) for each in running]
        while met := [(each, *where) for each, where in arrived if not each.dead]:
            for experts in dict.fromkeys(where for _, where, _ in met):
                experts.compute([call for _, where, call in met if where is experts])
            arrived = [(each, each.switch()) for each, _, _ in met]
    finally:
        for each in running:
            each.throw()  # after an error, ends the coroutines that still wait; no effect on finished ones
