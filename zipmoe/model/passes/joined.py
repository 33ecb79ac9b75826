"""Computes requests of any decoder-only family together: each by stock's own forward over a cache of its own.

The forward passes run as coroutines. They meet at the routed experts, where each expert is fetched once for all. Decode
steps, which have one row of each request, also meet at the linears of which the kernels know the sums of one row: the
weights are then read from memory once for all. Everything else is computed for each request by itself.
"""

from __future__ import annotations

from collections import abc

import torch

from zipmoe.model.build.build import BuiltModel
from zipmoe.model.linear.linear_module import NativeLinear
from zipmoe.model.meeting import Coroutine, Meeting, MeetingPlace, meet_with_row
from zipmoe.model.passes.prompt_pass import PromptResult
from zipmoe.model.passes.sequence import Sequence


class JoinedRequest:
    """A request with its cache and with the pass that is under way."""

    def __init__(self, sequence: Sequence, prompt: Coroutine | None) -> None:
        """Takes over a sequence and the pass of its prompt; None for a sequence whose prompt is computed."""
        self.sequence = sequence
        self.prompt: PromptResult | None = None
        """Result of the prompt; None before it is computed."""
        self.under_way: Coroutine | None = prompt
        self.layers_done = 0
        """MoE layers of the prompt that are computed for certain."""
        self.under_way = prompt

    def fork(self) -> JoinedRequest:
        """Returns a request that goes on from the same tokens with a cache of its own; between two passes."""
        return JoinedRequest(self.sequence.fork(), None)

    def close(self) -> None:
        """Ends the pass that is under way, and frees the cache."""
        if self.under_way is not None:
            with torch.inference_mode():
                self.under_way.close()
            self.under_way = None
        self.sequence.close()


class JoinedModel:
    """Computes prompts, which can stop between layers, and decode steps that requests share.

    The bits are those of each request alone. A pass that fails stops where it is, with all that is computed. It goes on
    there when its requests are advanced again, together or alone.

    Thread: one at a time per model.
    """

    def __init__(self, built: BuiltModel) -> None:
        """Prepares the coroutines, and makes the model's linears offer calls to those with one row."""
        self._built = built
        places: list[MeetingPlace] = []
        experts = dict(zip((layer.module for layer in built.layers), built.experts, strict=True))
        for name, module in built.model.named_modules(remove_duplicate=False):
            if name in experts:
                places.append(experts[name])
            elif isinstance(module, NativeLinear) and module.knows_single_rows():
                module.meet_by(meet_with_row)
                places.append(module)
        self._meeting = Meeting(places)

    @property
    def layer_count(self) -> int:
        """Layers with routed experts."""
        return len(self._built.experts)

    def begin(self, token_ids: abc.Sequence[int], *, scored: int | None = None) -> JoinedRequest:
        """Prepares a request; nothing is computed yet.

        Args:
            token_ids: the prompt.
            scored: likeliest tokens to report beside each token's log-probability; None scores nothing.
        """
        sequence = Sequence(self._built)
        prompt = Coroutine(lambda: sequence.prefill(token_ids, prompt_logprobs=scored), single_row=False)
        return JoinedRequest(sequence, prompt)

    def advance(self, requests: abc.Sequence[JoinedRequest], layers: int) -> None:
        """Computes the next layers of prompts; those at the same layer share the fetched experts.

        Args:
            requests: requests whose prompts are not computed yet.
            layers: number of MoE layers, at least 1. The last one is followed by everything up to the next.

        Raises:
            InvalidRequest: as `Sequence.prefill`.
            ZipMoeError: error of the provider.
        """
        passes = [each.under_way for each in requests if each.under_way is not None]
        with torch.inference_mode():
            self._meeting.advance(passes, layers)
        for request in requests:
            request.layers_done = min(request.layers_done + layers, self.layer_count)
            if request.under_way is not None and request.under_way.dead:
                request.prompt = request.under_way.result
                request.under_way = None

    def step(self, requests: abc.Sequence[JoinedRequest], token_ids: abc.Sequence[int]) -> list[torch.Tensor]:
        """Appends a token to each request.

        Args:
            requests: requests whose prompts are computed.
            token_ids: the token of each; for a request of a failed step, the same as before.

        Returns:
            Logits of the next token of each request, bf16, shape (vocabulary,).

        Raises:
            InvalidRequest: as `Sequence.step`.
            ZipMoeError: error of the provider.
        """
        passes = []
        for request, token_id in zip(requests, token_ids, strict=True):
            if request.under_way is None:
                request.under_way = Coroutine(_stepping(request.sequence, token_id), single_row=True)
            passes.append(request.under_way)
        with torch.inference_mode():
            self._meeting.advance(passes)
        for request in requests:
            request.under_way = None
        return [each.result for each in passes]


def _stepping(sequence: Sequence, token_id: int) -> abc.Callable[[], torch.Tensor]:
    return lambda: sequence.step(token_id)
