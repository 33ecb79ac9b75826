"""Takes several prompts through the layers together, each by stock's own calls; a layer asks for each expert once.

The layer of each prompt runs as a coroutine. The coroutines meet at the routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from zipmoe.model.attention.ragged_attention import ragged_attention
from zipmoe.model.experts.routed_experts import RoutedExperts
from zipmoe.model.meeting import Coroutine, Meeting
from zipmoe.model.passes.prompt_pass import PromptPass
from zipmoe.model.stock.body import text_body


class PromptsTogether:
    """Computes prompts of one model layer by layer.

    Thread: one at a time per model.
    """

    def __init__(self, model: PreTrainedModel, experts: Sequence[RoutedExperts]) -> None:
        """Prepares the coroutines, which meet at the model's routed experts."""
        self._model = model
        self._meeting = Meeting(experts)

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
                self._advance_by_one([prompt for prompt in prompts if prompt.layers_left])

    def _advance_by_one(self, prompts: Sequence[PromptPass]) -> None:
        """Computes the next layer of each prompt."""
        running = [Coroutine(partial(prompt.compute, 1), single_row=False) for prompt in prompts]
        try:
            self._meeting.advance(running)
        finally:
            for each in running:
                each.close()  # after an error, ends the coroutines that still wait
